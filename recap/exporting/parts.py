"""The working folder of an export, which can go on after it was killed: it is made in parts, each written atomically
and followed by a marker.

    .OUT.unfinished/lock               held while an export of this name runs
    .OUT.unfinished/asked.json         the request; where it differs, the export starts again
    .OUT.unfinished/done/NAME/N.json   the marker of a part, which holds its counts
    .OUT.unfinished/rows/N.arrow       rows, before they are cut into files
    .OUT.unfinished/out/               renamed to OUT at the end
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from hpc.base import atomic
from hpc.base.command import console
from hpc.base.errors import UserError
from hpc.base.lock import hold
from hpc.base.on_all_cores import on_all_cores

Chunk = TypeVar("Chunk")


@dataclass(frozen=True)
class Parts:
    """The working folder. out: the folder that becomes OUT. rows: the folder of intermediate rows."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def rows(self) -> Path:
        return self.folder / "rows"

    def make(
        self, name: str, work: Callable[[int, Chunk], dict[str, Any]], chunks: Iterable[Chunk]
    ) -> Iterator[tuple[Chunk, dict[str, Any]]]:
        """Make one part of each chunk, on all cores. Yields (chunk, marker) in order. Parts with a marker are not made
        again.

        Args:
            name: of this kind of parts.
            work: called with (number, chunk); writes its files by `atomic_file`, and returns the marker, a JSON object.
                Must be picklable.
        """
        markers = self.folder / "done" / name
        markers.mkdir(parents=True, exist_ok=True)
        for (_, chunk), marker in on_all_cores(_Part(work, markers), enumerate(chunks)):
            yield chunk, marker

    @contextmanager
    def atomic_file(self, path: Path) -> Iterator[BinaryIO]:
        """A file to write, which gets its name only once it is complete, and is then synced to the disk, so that a
        marker written after it holds even after a power cut. Folders are made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        making = atomic.temporary(path)
        try:
            with making.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            making.replace(path)
        finally:
            making.unlink(missing_ok=True)
        self.sync(path)

    def sync(self, path: Path) -> None:
        """Sync all folders above a path to the disk, after the path was made, renamed or removed."""
        for above in path.relative_to(self.folder).parents:
            atomic.sync(self.folder / above)


@dataclass(frozen=True)
class _Part(Generic[Chunk]):
    work: Callable[[int, Chunk], dict[str, Any]]
    markers: Path

    def __call__(self, numbered: tuple[int, Chunk]) -> dict[str, Any]:
        number, chunk = numbered
        marker = self.markers / f"{number}.json"
        if not marker.exists():
            atomic.replace(marker, atomic.as_json(self.work(number, chunk)), durable=True)
        found: dict[str, Any] = json.loads(marker.read_bytes())
        return found


@contextmanager
def parts_of(out: Path, asked: dict[str, Any]) -> Iterator[Parts]:
    """The working folder of an export, renamed to `out` at the end. The parts of a killed export are kept.

    Args:
        asked: everything that decides what the files hold, as JSON.

    Raises:
        UserError: `out` exists and is not empty, or another process is making it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"export: {out} exists and is not empty. Choose another folder.")
    parts = Parts(out.with_name(f".{out.name}.unfinished"))
    parts.folder.mkdir(parents=True, exist_ok=True)
    with hold(parts.folder / "lock", "export"):
        _begin(parts, atomic.as_json(asked, indent=1))
        try:
            yield parts
            _sync_all(parts.out)
            if out.exists():
                out.rmdir()
            parts.out.rename(out)
            atomic.sync(out.parent)
        finally:
            if not parts.out.exists() or not any((parts.folder / "done").rglob("*.json")):
                shutil.rmtree(parts.folder, ignore_errors=True)


def _begin(parts: Parts, asked: bytes) -> None:
    """Keep the parts of a killed export of the same request; else clear the folder."""
    request = parts.folder / "asked.json"
    if parts.out.exists() and request.exists() and request.read_bytes() == asked:
        for torn in parts.folder.rglob(f"{atomic.TEMPORARY}*"):
            torn.unlink()
        done = sum(1 for _ in (parts.folder / "done").rglob("*.json"))
        console.print(f"export: goes on where it ended; {done:,} parts are there", markup=False)
    else:
        request.unlink(missing_ok=True)
        for folder in (parts.folder / "done", parts.rows, parts.out):
            shutil.rmtree(folder, ignore_errors=True)
        atomic.sync(parts.folder)  # so that no marker of another request is there after a power cut
        atomic.replace(request, asked, durable=True)
    parts.out.mkdir(exist_ok=True)


def _sync_all(folder: Path) -> None:
    """Sync a folder and all files in it to the disk."""
    for above, _, names in os.walk(folder):
        for path in (Path(above, name) for name in names):
            if not path.is_symlink():
                atomic.sync(path)
        atomic.sync(Path(above))
