"""Texts for people: durations, hours, paths, and what is safe to print in a terminal."""

from __future__ import annotations

from pathlib import Path

SCHEMA = 1
"""The version of what `--json` of the commands prints: the key `schema` in it."""


def short(path: Path) -> str:
    """A path as seen from the current directory, where it lies below that."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def duration(seconds: float) -> str:
    """A length of time in its largest unit: `1.5 h`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def hours_text(hours: float, unit: str) -> str:
    """Hours of GPUs or engines (`unit`): `1.5 GPU hours`, in minutes or seconds where they are few."""
    if hours >= 1:
        return f"{hours:,.1f} {unit} hours"
    return f"{60 * hours:,.1f} {unit} minutes" if hours >= 1 / 120 else f"{3600 * hours:,.1f} {unit} seconds"


def printable(text: str) -> str:
    """Text that is safe in a terminal: control characters are shown as \\x1b, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def file_size(size: float) -> str:
    """Bytes, for people."""
    if size < 1024:
        return f"{size:,.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:,.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"
