"""How many samples a tar should have, by the files that img2dataset writes beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Set
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.remote_files import file_system
from hpc.base.small_reads import small_reads

_MOST = 1 << 40  # samples of a shard: a larger number is none
ARCHIVES = (".tar", ".tar.gz", ".tgz")


def expected_samples(how: str, found: Iterable[str], known: Set[str]) -> dict[str, int]:
    """Number of samples by uri.

    Args:
        how: the config's `data.expected`.
        found: uris of the tars.
        known: uris of all files in the listed folders.
    """
    stats: dict[str, str] = {}
    tables: dict[str, str] = {}
    for uri in found:
        if how == "none" or (how == "auto" and "://" in uri):
            continue
        stem = stem_of(uri)
        if how in ("auto", "stats") and f"{stem}_stats.json" in known:
            stats[f"{stem}_stats.json"] = uri
        elif how in ("auto", "parquet") and f"{stem}.parquet" in known:
            tables[f"{stem}.parquet"] = uri
    counts: dict[str, int] = {}
    for files, count in ((stats, _successes), (tables, _rows)):
        for path, number in _counted(list(files), count):
            if number is not None:
                counts[files[path]] = number
    return counts


def _counted(paths: list[str], count: Callable[[BinaryIO], int | None]) -> Iterable[tuple[str, int | None]]:
    """(path, count) of many small files; remote ones are fetched together. Files that cannot be read count None."""
    yield from small_reads(partial(_of_local, count), [p for p in paths if "://" not in p])
    remote = [p for p in paths if "://" in p]
    for start in range(0, len(remote), 1000):
        part = remote[start : start + 1000]
        system, _ = file_system(part[0])
        stripped = {system._strip_protocol(p): p for p in part}
        answers: dict[str, Any] = system.cat(list(stripped), on_error="omit")
        yield from ((stripped[name], count(BytesIO(content))) for name, content in answers.items())


def _of_local(count: Callable[[BinaryIO], int | None], path: str) -> tuple[str, int | None]:
    try:
        with open(path, "rb") as file:
            return path, count(file)
    except OSError:
        return path, None


def _successes(file: BinaryIO) -> int | None:
    """The count in a statistics file; None where it is cut off, since img2dataset does not write it atomically."""
    try:
        count = json.load(file)["successes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return count if type(count) is int and 0 <= count < _MOST else None


def _rows(file: BinaryIO) -> int | None:
    """The number of rows with status success. Only that column is read, since the table may have gigabytes."""
    import pyarrow.compute as pc  # 0.1 s: only where there is such a file

    try:
        table = pq.ParquetFile(file)
        if "status" not in table.schema_arrow.names:
            return None
        return int(pc.sum(pc.equal(table.read(["status"])["status"], "success")).as_py() or 0)
    except (OSError, pa.ArrowException):
        return None


def stem_of(uri: str) -> str | None:
    """A shard's uri without its `.tar` or the like; None where it ends in none of these."""
    return next((uri.removesuffix(a) for a in ARCHIVES[::-1] if uri.endswith(a)), None)
