"""Some rows of a parquet file, without reading the others."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def rows_of(file: pq.ParquetFile, first: int, count: int, fields: list[str]) -> pa.Table:
    """Rows [first, first + count) of a file, with those of `fields` that it has.

    Only the row groups that hold them are read, of whatever size these are.
    """
    names = [n for n in fields if n in file.schema_arrow.names]
    groups: list[int] = []
    skipped = at = 0
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if at + rows > first and at < first + count:
            skipped = at if not groups else skipped
            groups.append(group)
        at += rows
    if not groups:
        return file.schema_arrow.empty_table().select(names)
    return file.read_row_groups(groups, columns=names, use_threads=False).slice(first - skipped, count)
