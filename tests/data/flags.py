"""The flags that ship with the project, in the shapes in which people keep images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recap.data.tars import Sample, read_samples
from recap.worlds.tars import write_tar

TARS = Path(__file__).parents[2] / "recap/demo/flags"

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def flags(shard: int, count: int | None = None) -> list[Sample]:
    """The samples of a tar: members png and txt."""
    with (TARS / f"{shard:05d}.tar").open("rb") as file:
        found = [sample for sample in read_samples(file) if isinstance(sample, Sample)]
    return found[:count]


def write_as_tar(file: Path, samples: Iterable[Sample]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        write_tar(out, ((sample.key, sample.members) for sample in samples))


def table(samples: Sequence[Sample], image: str = "image", text: str = "text", struct: bool = True) -> pa.Table:
    """Rows as `datasets` has them, or with a binary column."""
    pictures: list[Any] = [s.members.get("png") for s in samples]
    column = (
        pa.array([None if p is None else {"bytes": p, "path": "0.png"} for p in pictures], STRUCT)
        if struct
        else pa.array(pictures, pa.binary())
    )
    texts = [None if "txt" not in s.members else s.members["txt"].decode() for s in samples]
    return pa.table({image: column, text: texts, "id": [s.key for s in samples], "width": [s.start for s in samples]})


def write_as_folder(folder: Path, samples: Iterable[Sample], beside: str = "txt") -> None:
    """Image files, with texts in a file beside each: .txt, .json with a `caption`, or none."""
    for sample in samples:
        path = folder / f"{sample.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.members["png"])
        text = sample.members["txt"].decode()
        if beside:
            path.with_suffix(f".{beside}").write_text(text if beside == "txt" else json.dumps({"caption": text}))


def write_as_parquet(file: Path, samples: Sequence[Sample], rows: int = 10, **settings: Any) -> None:
    """Row groups of `rows` rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(samples, **settings), file, row_group_size=rows, write_page_checksum=True)
