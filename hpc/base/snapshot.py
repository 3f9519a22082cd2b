"""A copy of the toolkit's code in the run directory: workers run it, so that a requeue weeks later runs what was
launched. hpc.base.bootstrap starts them, and checks first that nobody has changed the copy.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from hpc.base import bootstrap
from hpc.base.errors import UserError

PACKAGES = ("hpc", "recap")
ROOT = Path(__file__).resolve().parents[2]


def _sources(root: Path) -> dict[str, bytes]:
    """Every module of the packages below `root`, by its path in the snapshot."""
    found = {}
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            if "__pycache__" not in file.parts:
                found[str(file.relative_to(root))] = file.read_bytes()
    return found


def digest(root: Path = ROOT) -> str:
    """Hash (32 hex digits) of the code as it is now."""
    return bootstrap.digest(_sources(root))


def take(folder: Path) -> str:
    """Copy the code to `<folder>/<digest>/` unless it is there; returns the name. A copy is complete before it has
    its name.

    Another user's copy is not used, even if it is equal: its owner may remove it later. Then the name of ours ends in
    our user id. Raises UserError where our copy was changed.
    """
    files = _sources(ROOT)
    name = wanted = bootstrap.digest(files)
    if (folder / name).exists() and (folder / name).stat().st_uid != os.geteuid():
        name = f"{wanted}-{os.geteuid()}"
    target = folder / name
    if target.exists():
        check(target)
        return name
    making = folder / f".tmp-{name}-{os.urandom(4).hex()}"
    for relative, data in files.items():
        copy = making / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        copy.chmod(0o444)
    for place in [making, *making.rglob("*/")]:
        place.chmod(0o755)
    try:
        making.rename(target)
    except OSError:  # another launch was faster with the same code
        shutil.rmtree(making)
    return name


def check(target: Path) -> None:
    """Raise UserError unless a snapshot is what its name says, every file of it and nothing else."""
    try:
        found = bootstrap.digest(bootstrap.read(target))
    except ValueError as error:
        raise UserError(f"code: {error}. Remove {target} and launch again.") from error
    if found != target.name.partition("-")[0]:
        raise UserError(f"code: {target} was changed after it was taken. Remove it and launch again.")


def command(code: Path, module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of a snapshot on this machine."""
    return [sys.executable, "-I", str(Path(bootstrap.__file__)), str(code), module, *arguments]
