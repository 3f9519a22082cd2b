"""What a folder says of its images: metadata.jsonl and metadata.csv, as `datasets`' ImageFolder has them: a line an
image, with its path from the file's own folder under `file_name`.
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
    """Rows by the image's path from the root.

    files: that there are. unread: lines that say nothing ("metadata.jsonl line 7"), in order. again: lines of an image
    that an earlier line of their file tells of, and that count in its place.

    Args:
        paths: metadata files, from the root. read: a file's bytes.
    """

    def __init__(self, paths: Iterable[str], read: Callable[[str], bytes]) -> None:
        self.files = sorted(paths, key=lambda path: (path.count("/"), path))  # what lies deeper knows better
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

    def told(self, images: Iterable[str]) -> list[str]:
        """What does not fit the images that there are."""
        if not self.files:
            return []
        there = set(images)
        told = []
        name = self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
        if lost := len(there - self.rows.keys()):
            told.append(f"{lost:,} images without a line in {name}: they have no text")
        if extra := sorted(self.rows.keys() - there):
            told.append(f"{len(extra):,} lines of {name} name no image ({extra[0]})")
        if self.again:
            told.append(f"{len(self.again):,} lines tell of an image a second time, and count ({self.again[0]})")
        if self.unread:
            told.append(f"{len(self.unread):,} lines of metadata cannot be read ({self.unread[0]})")
        return told


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
    """Lines are counted as an editor counts them: a quoted value may hold several."""
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
