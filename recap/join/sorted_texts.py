"""Their texts, sorted once by the hashes of their identifiers, and looked up by any number of processes.

    FOLDER/<file's number>/<part>.hashes   the first 8 bytes of each hash, sorted; mapped into memory
    FOLDER/<file's number>/<part>.places   in the same order: last 8 bytes of the hash, number of the row, first byte of
                                           its text, bytes of its text; 8 bytes each
    FOLDER/<file's number>/<part>.texts    the texts, one after another
    FOLDER/<file's number>/summary.json    number of rows, and of those that cannot be joined

Each of their files becomes a folder, atomically. The processes of a job share the work, a file at a time; a file that a
killed process was sorting is sorted again. Memory: the hashes of a part while it is sorted; texts are read one by one.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from hpc.base.lock import hold
from recap.join.identifiers import as_numbers, cleaned, hashed
from recap.join.theirs import File, Theirs, batches

PART = 200_000  # rows of a part
SUMMARY = "summary.json"
NO_TEXT, NO_IDENTIFIER = "no text", "no identifier"
_PLACE = struct.Struct("<Qqqq")


def prepare(theirs: Theirs, folder: Path) -> None:
    """Sort all files that are not sorted yet, together with other processes that do the same; wait for theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    while left := [number for number in range(len(theirs.files)) if not _sorted_folder(folder, number).exists()]:
        for number in left:
            if not _sorted_folder(folder, number).exists():
                _sort_alone(theirs, folder, number)
        if any(not _sorted_folder(folder, number).exists() for number in left):
            time.sleep(1.0)  # other processes sort them


def _sort_alone(theirs: Theirs, folder: Path, number: int) -> None:
    """Sort one file, unless another process is doing so."""
    (folder / "locks").mkdir(exist_ok=True)
    making = folder / f".{number}-{os.uname().nodename}-{os.getpid()}"
    try:
        with hold(folder / "locks" / str(number), "sort"):
            if not _sorted_folder(folder, number).exists():
                for dead in folder.glob(f".{number}-*"):  # remains of killed processes, as large as their texts
                    shutil.rmtree(dead, ignore_errors=True)
                making.mkdir()
                _sort(theirs.files[number], theirs.by, making)
                making.rename(_sorted_folder(folder, number))
    except UserError as error:
        if "another sort" not in str(error):
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _sort(file: File, by: list[str], making: Path) -> None:
    counts, rows, part = Counter[str](), 0, _Writer(making / "0")
    rules, parts = [rule for rule in by if rule in file.columns], 1
    for table in batches(file):
        columns = {rule: table[rule].to_pylist() for rule in rules}
        for n, text in enumerate(table["text"].to_pylist()):
            found = next(((rule, v) for rule in rules if (v := cleaned(rule, columns[rule][n]))), None)
            if not text or found is None:
                counts[NO_TEXT if not text else NO_IDENTIFIER] += 1
                continue
            counts[found[0]] += 1
            part.add(hashed(*found), rows + n, text.encode("utf-8", "surrogatepass"))
        rows += len(table)
        if part.rows >= PART:
            part.close()
            part, parts = _Writer(making / str(parts)), parts + 1
    part.close()
    (making / SUMMARY).write_text(json.dumps({"rows": rows, "parts": parts, "counts": counts}))


class _Writer:
    """Writes a part: texts as they are added, the hashes and places at the end."""

    def __init__(self, path: Path) -> None:
        self._path, self._texts = path, path.with_suffix(".texts").open("wb")
        self._hashes, self._places, self._at = bytearray(), array("q"), 0
        self.rows = 0

    def add(self, hash: bytes, row: int, text: bytes) -> None:
        self._texts.write(text)
        self._hashes += hash
        self._places.extend((row, self._at, len(text)))
        self._at += len(text)
        self.rows += 1

    def close(self) -> None:
        self._texts.close()
        numbers, places = as_numbers(self._hashes), np.array(self._places, np.int64).reshape(-1, 3)
        order = np.lexsort((places[:, 0], numbers[:, 1], numbers[:, 0]))
        numbers[order, 0].tofile(self._path.with_suffix(".hashes"))
        last = numbers[order, 1].view("<i8")
        np.column_stack([last, places[order]]).astype("<i8").tofile(self._path.with_suffix(".places"))


def _sorted_folder(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}"


@dataclass(frozen=True, slots=True)
class TheirRow:
    """A row of theirs. row: its number over all files."""

    row: int
    text: str


class _Part:
    """A part, open for look-ups. first: number of the first row of its file, over all files."""

    def __init__(self, path: Path, first: int) -> None:
        hashes = path.with_suffix(".hashes")
        self._hashes = np.memmap(hashes, "<u8", "r") if hashes.stat().st_size else np.empty(0, "<u8")
        self._first = first
        self._places, self._texts = (os.open(path.with_suffix(s), os.O_RDONLY) for s in (".places", ".texts"))

    def find(self, wanted: np.ndarray) -> Iterator[tuple[int, TheirRow]]:
        """(number of a hash in `wanted`, a row that has it), for all rows. wanted: uint64 [N, 2]."""
        left = np.searchsorted(self._hashes, wanted[:, 0], "left")
        right = np.searchsorted(self._hashes, wanted[:, 0], "right")
        for n in np.nonzero(right > left)[0]:
            for place in range(left[n], right[n]):
                found = os.pread(self._places, _PLACE.size, place * _PLACE.size)
                last, row, at, size = _PLACE.unpack(found)
                if last == wanted[n, 1]:
                    text = os.pread(self._texts, size, at).decode("utf-8", "surrogatepass")
                    yield int(n), TheirRow(self._first + row, text)

    def close(self) -> None:
        os.close(self._places)
        os.close(self._texts)


class SortedTexts:
    """Looks up rows by the hash of their identifier. folder: the one that `prepare` made."""

    def __init__(self, folder: Path) -> None:
        first, self._parts = 0, list[_Part]()
        for place in sorted(p for p in folder.iterdir() if p.name.isdigit()):
            facts = summary(place)
            self._parts += [_Part(place / str(part), first) for part in range(facts["parts"])]
            first += facts["rows"]

    def find(self, hashes: list[bytes]) -> dict[bytes, list[TheirRow]]:
        """Their rows by hash, in order of the files; without hashes that they do not have."""
        unique = sorted({*hashes})
        wanted, found = as_numbers(b"".join(unique)), dict[bytes, list[TheirRow]]()
        for part in self._parts:
            for n, row in part.find(wanted):
                found.setdefault(unique[n], []).append(row)
        return found

    def close(self) -> None:
        for part in self._parts:
            part.close()


def summary(place: Path) -> dict[str, Any]:
    """The summary.json of one sorted file: rows, parts, counts (rows by rule, without text, without identifier)."""
    facts: dict[str, Any] = json.loads((place / SUMMARY).read_text())
    return facts


def totals(folder: Path) -> tuple[int, Counter[str]]:
    """(number of their rows, how many count by each rule, have no text, or no identifier)."""
    facts = [summary(place) for place in sorted(folder.iterdir()) if place.name.isdigit()]
    return sum(f["rows"] for f in facts), sum((Counter(f["counts"]) for f in facts), Counter())
