"""A copy of the toolkit's code in the run directory: workers run it, so that a requeue weeks later runs what was
launched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from hpc.errors import UserError

PACKAGES = ("hpc", "recap")
ROOT = Path(__file__).resolve().parent.parent


def _sources(root: Path) -> list[tuple[str, Path]]:
    """(path in the snapshot, file) of every module of the packages below `root`."""
    found = []
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            if "__pycache__" not in file.parts:
                found.append((str(file.relative_to(root)), file))
    return found


def digest(root: Path = ROOT) -> str:
    """Hash (12 hex digits) of the code as it is now."""
    content = hashlib.sha256()
    for name, file in _sources(root):
        content.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def take(folder: Path) -> str:
    """Copy the code to `<folder>/<digest>/` unless it is there. Complete before it has its name, writable by its
    owner alone.

    Another user's copy is not used, equal as it may be now: who owns it may change it later. Then the name ends in
    our user id.
    """
    wanted = digest()
    name = wanted
    if (folder / name).exists() and (folder / name).stat().st_uid != os.geteuid():
        name = f"{wanted}-{os.geteuid()}"
    target = folder / name
    if target.exists():
        check(target)
        return name
    making = folder / f".tmp-{name}-{os.urandom(4).hex()}"
    for relative, file in _sources(ROOT):
        copy = making / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        copy.chmod(0o444)
    for package in {file.parent for file in making.rglob("*.py")}:  # else the first worker makes them, by its umask
        (package / "__pycache__").mkdir()
    for place in [making, *making.rglob("*/")]:
        place.chmod(0o755)
    try:
        making.rename(target)
    except OSError:  # another launch was faster with the same code
        shutil.rmtree(making)
    return name


def check(target: Path) -> None:
    """Raise UserError unless a snapshot is what its name says and only its owner can write it."""
    if digest(target) != target.name.split("-")[0]:
        raise UserError(f"code: {target} was changed after it was taken. Remove it and launch again.")
    for place in [target, *target.rglob("*")]:
        if place.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(
                f"code: others than its owner may write {place}. chmod go-w it, or remove it and launch again."
            )


def check_running() -> None:
    """`check` for the snapshot that this process runs from, if it runs from one."""
    if ROOT.parent.name == "code":
        check(ROOT)
