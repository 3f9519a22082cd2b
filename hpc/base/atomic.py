"""Files that are there whole or not at all, on POSIX file systems that several machines share.

`create` is the one primitive of exclusion: link(2) to a name that must not exist. Unlike O_EXCL it shows content and
name together, and unlike flock it holds on NFS and Lustre: when the reply is lost, the temporary's link count
tells who won (open(2), section NOTES).
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

_counter = itertools.count()
_me = f"{socket.gethostname()}-{os.getpid()}"
TEMPORARY = ".tmp-"  # prefix of names that mean nothing to readers


def temporary(target: Path) -> Path:
    """A private name in the target's directory (a link must not cross directories: they may be different servers)."""
    return target.parent / f"{TEMPORARY}{_me}-{next(_counter)}-{os.urandom(4).hex()}"


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and force it to stable storage."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, data: bytes, durable: bool) -> None:
    if durable:
        write_synced(path, data)
    else:
        path.write_bytes(data)


def sync(path: Path) -> None:
    """Force a file, or a directory with its names, to stable storage."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_new(source: Path, target: Path) -> None:
    """Give the file `source` the further name `target`. Raises FileExistsError where another file has that name.

    Safe when the server's reply was lost: what was linked then is not taken for another's file.
    """
    try:
        os.link(source, target)
    except OSError:
        # An error may hide a success (NFS retransmission); a second link of our own file proves it.
        try:
            if os.stat(source).st_nlink != 2 or not os.path.samefile(source, target):
                raise
        except FileNotFoundError:  # `source` is gone: a successor that has finished the work cleaned up
            raise OSError(f"{source} vanished while it was being published as {target}") from None


def create(target: Path, data: bytes, *, durable: bool = True) -> bool:
    """Create `target` with `data`, whole, never over an existing file. True if this call made it.

    Raises OSError for anything but "it exists" (no space, read-only, no directory).
    """
    source = temporary(target)
    try:
        _write(source, data, durable)
        try:
            link_new(source, target)
        except FileExistsError:
            return False
    finally:
        source.unlink(missing_ok=True)
    if durable:
        sync(target.parent)
    return True


def excludes(probe: Path) -> bool:
    """Whether `create` works in the directory of `probe`, a name that is free: it makes it once, and refuses to make it
    again. Raises OSError where no hard link can be made. Leaves nothing behind.
    """
    try:
        return create(probe, b"", durable=False) and not create(probe, b"", durable=False)
    finally:
        probe.unlink(missing_ok=True)


def replace(target: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `target` whole, over what was there. For files with one writer (heartbeats, submissions)."""
    source = temporary(target)
    try:
        _write(source, data, durable)
        os.replace(source, target)
    except BaseException:
        source.unlink(missing_ok=True)
        raise
    if durable:
        sync(target.parent)


def make_below(folder: Path, levels: int) -> None:
    """Make a directory and at most `levels` - 1 of its parents. Raises FileNotFoundError where a directory further up
    is missing: workers of a run that was deleted or unmounted must not bring it back as an empty one.
    """
    try:
        folder.mkdir(exist_ok=True)  # the innermost first: where it exists, this is the only call
    except FileNotFoundError:
        if levels == 1:
            raise
        make_below(folder.parent, levels - 1)
        folder.mkdir(exist_ok=True)


def as_json(record: Any, **options: Any) -> bytes:
    """JSON in UTF-8. Text that is not Unicode (undecodable bytes of a file name) becomes JSON's own \\udcXX escapes."""
    return json.dumps(record, ensure_ascii=False, **options).encode(errors="backslashreplace")
