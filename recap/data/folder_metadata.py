"""The metadata files of an image folder, metadata.jsonl and metadata.csv, as `datasets`' ImageFolder reads them: a line
an image, whose `file_name` is its path relative to the metadata file.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from typing import Any

NAMES = ("metadata.jsonl", "metadata.csv")
_NAME = "file_name"
_LONGEST_FIELD = 1 << 24  # bytes of one value of a csv


class Metadata:
    """All metadata files below a folder.

    rows: by image, its path from the folder. Where an image has several rows, those of the deeper file and of the later
        line count.
    files: the metadata files, in the order in which they are read.
    unread: lines that cannot be read ("metadata.jsonl line 7").
    again: lines of an image that has an earlier line in the same file.

    Args:
        paths: metadata files, from the folder. read: returns a file's bytes.
    """

    def __init__(self, paths: Iterable[str], read: Callable[[str], bytes]) -> None:
        self.files = sorted(paths, key=lambda path: (path.count("/"), path))  # deeper files come last, and win
        self.rows: dict[str, dict[str, Any]] = {}
        self.unread: list[str] = []
        self.again: list[str] = []
        for path in self.files:
            lines, mine = _csv if path.endswith(".csv") else _jsonl, set[str]()
            for number, row in lines(read(path)):
                name = row.pop(_NAME, None) if row is not None else None
                if row is None or not isinstance(name, str) or not name:
                    self.unread.append(f"{path} line {number}")
                    continue
                image = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
                self.again += [f"{path} line {number}"] if image in mine else []
                mine.add(image)
                self.rows[image] = row

    def mismatches(self, images: Iterable[str]) -> list[str]:
        """Sentences about lines without an image, and about images without a line."""
        if not self.files:
            return []
        there = set(images)
        found = []
        name = self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
        if lost := len(there - self.rows.keys()):
            found.append(f"{lost:,} images without a line in {name}: they have no text")
        if extra := sorted(self.rows.keys() - there):
            found.append(f"{len(extra):,} lines of {name} name no image ({extra[0]})")
        if self.again:
            found.append(f"{len(self.again):,} lines tell of an image a second time, and count ({self.again[0]})")
        if self.unread:
            found.append(f"{len(self.unread):,} lines of metadata cannot be read ({self.unread[0]})")
        return found


def _jsonl(data: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            row = None
        yield number, row if isinstance(row, dict) else None


def _csv(data: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(number of the line, row). A quoted value may span several lines, which are counted as in an editor."""
    csv.field_size_limit(_LONGEST_FIELD)
    text = io.StringIO(data.decode("utf-8-sig", "replace"), newline="")
    rows = csv.DictReader(text, strict=False)
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            yield rows.line_num, None
            continue
        if row is None:
            return
        surplus = row.pop(None, None)
        named = {name: value for name, value in row.items() if value not in (None, "")}
        yield rows.line_num, None if surplus else named
