"""Texts for people: durations, hours, paths, and what is safe to print in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


SCHEMA = 1


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def hours_text(hours: float, unit: str) -> str:
    if hours >= 1:
        return f"{hours:,.1f} {unit} hours"
    return f"{60 * hours:,.1f} {unit} minutes" if hours >= 1 / 120 else f"{3600 * hours:,.1f} {unit} seconds"


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def file_size(size: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:,.1f} {unit}" if unit != "B" else f"{size:,.0f} B"
        size /= 1024
    raise AssertionError
