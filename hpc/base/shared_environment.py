"""Does Python's environment lie on a file system that all nodes share? Importing torch and transformers asks it for
29,000 names (`strace -f -e trace=%file python -c "import torch, transformers"`), and each engine and rank does so, all
at once when a job starts: 2,048 of them ask a metadata server sixty million times.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
SHARED = {
    "afs", "beegfs", "ceph", "cifs", "curvefs", "dfuse", "glusterfs", "gpfs", "juicefs", "lustre", "nfs", "nfs4",
    "orangefs", "panfs", "pvfs2", "s3fs", "smb3", "sshfs", "wekafs",
}  # fmt: skip
"""Types of file systems that lie on other machines, as the kernel names them, without "fuse." before."""

_HEAVY = ("torch", "transformers")


def warning(prefix: str = sys.prefix, mounts: Path = MOUNTS) -> str:
    """A warning where the environment at `prefix` lies on a shared file system, "" where it lies on this node."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, place in _places(prefix).items():
        if kind := shared(place, mounts):
            found.setdefault((kind, str(place)), []).append(name)
    if not found:
        return ""
    what = "; ".join(f"{', '.join(names)} on {kind} ({place})" for (kind, place), names in found.items())
    return (
        f"environment: {what}: every engine asks that file system for tens of thousands of names as it starts. Use a "
        "container, a squashfs image, or a copy on the node (docs/cluster.md, File systems)"
    )


def shared(place: Path, mounts: Path = MOUNTS) -> str:
    """The type of the shared file system that a path lies on, "" where it is a node's own, or not known."""
    best = ("", "")
    for point, kind in _mounts(mounts):
        inside = place == Path(point) or Path(point) in place.parents
        if inside and len(point) >= len(best[0]):  # of two mounts at one point, the later hides the earlier
            best = (point, kind)
    kind = best[1].removeprefix("fuse.")
    return kind if kind in SHARED else ""


def _places(prefix: str) -> Mapping[str, Path]:
    """Where the environment is, and of this process's own also torch and transformers, without importing them."""
    found = {"python's environment": Path(prefix).resolve()}
    if prefix == sys.prefix:
        for name in _HEAVY:
            spec = importlib.util.find_spec(name)
            if spec is not None and spec.origin:
                found[name] = Path(spec.origin).resolve().parent.parent
    return found


def _mounts(mounts: Path) -> Iterator[tuple[str, str]]:
    """(mount point, type) in the order of mounting."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if len(parts := fields.split()) > 4 and rest:
            yield re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), parts[4]), rest.split()[0]
