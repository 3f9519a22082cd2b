"""A copy of the toolkit's code in the run directory: workers run it, so that a requeue weeks later runs what was launched."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

PACKAGES = ("hpc", "recap")


def _sources() -> list[tuple[str, Path]]:
    """(path in the snapshot, file) of every module of the packages that are installed here."""
    found = []
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            if "__pycache__" not in file.parts:
                found.append((str(file.relative_to(root)), file))
    return found


def digest() -> str:
    """Hash (12 hex digits) of the code as it is now."""
    content = hashlib.sha256()
    for name, file in _sources():
        content.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def take(folder: Path) -> str:
    """Copy the code to `<folder>/<digest>/` unless it is there. Read-only, complete before it has its name."""
    name = digest()
    target = folder / name
    if target.exists():
        return name
    making = folder / f".tmp-{name}-{os.urandom(4).hex()}"
    for relative, file in _sources():
        copy = making / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        copy.chmod(0o444)
    try:
        making.rename(target)
    except OSError:  # another launch was faster with the same code
        shutil.rmtree(making)
    return name
