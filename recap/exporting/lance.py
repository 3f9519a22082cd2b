"""A Lance data set of an export's rows.

Lance gives its files random names, so that two exports of one run have equal rows, but not equal bytes. Where the
export is killed while Lance writes, the data set is written again from the rows, which are kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from hpc.base.errors import UserError
from recap.exporting.files import Size, file_slices, read
from recap.exporting.parts import Parts

FOLDER = "data/train.lance"


def library() -> Any:
    """The module `lance`. UserError where it is not installed."""
    try:
        import lance
    except ImportError as error:
        raise UserError(
            f"export: --lance needs pylance, which is not installed: pip install pylance ({error})."
        ) from error
    return lance


def write_lance(parts: Parts, counts: Sequence[int], schema: pa.Schema, size: Size) -> None:
    """Write data/train.lance. counts: rows of each part."""
    target = parts.out / FOLDER
    shutil.rmtree(target, ignore_errors=True)  # left by an export that was killed
    target.parent.mkdir(exist_ok=True)
    [everything] = file_slices(counts, max(sum(counts), 1))
    batches = (batch for table in read(parts, everything) for batch in table.to_batches(max_chunksize=8192))
    limit = {"max_bytes_per_file": size.bytes} if size.bytes else {"max_rows_per_file": size.rows}
    library().write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(target), **limit)
