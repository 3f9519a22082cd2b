"""An export that goes on after it was killed: its parts are made whole or not at all, and each has a marker.

.OUT.unfinished/lock               one export of this name at a time
.OUT.unfinished/asked.json         what was asked for: what was begun otherwise is begun anew
.OUT.unfinished/done/NAME/N.json   the marker of a part: what its maker says of it
.OUT.unfinished/rows/N.arrow       rows, before they are cut into files
.OUT.unfinished/out/               gets the name OUT at the end
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
    """Where an export is made. out: the folder that becomes OUT; rows: of files that do not."""

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
        """Each chunk and its marker, in order, on all cores; parts that have a marker are not made again.

        Args:
            name: of the kind of parts. work: of (number, chunk), makes files that are whole (`whole`) or not there, and
                returns the marker, a JSON object; can be pickled.
        """
        markers = self.folder / "done" / name
        markers.mkdir(parents=True, exist_ok=True)
        for (_, chunk), marker in on_all_cores(_Part(work, markers), enumerate(chunks)):
            yield chunk, marker

    @contextmanager
    def whole(self, path: Path) -> Iterator[BinaryIO]:
        """A file that is written; it gets its name, in folders that are made, once it is whole. Then all of this is on
        the disk: a marker that follows speaks for it after a power cut, too.
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
        """Force a name to the disk, and those of the folders that it lies in; or that it is gone."""
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
    """The parts of an export, which get the name `out` at the end; what a killed one left behind is gone on with.

    Args:
        asked: all that decides what the files hold, as JSON.

    Raises:
        UserError: `out` is taken, or another process makes it now.
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
    """Go on where the same was asked for, else begin anew."""
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
        atomic.sync(parts.folder)  # no marker of another request comes back
        atomic.replace(request, asked, durable=True)
    parts.out.mkdir(exist_ok=True)


def _sync_all(folder: Path) -> None:
    """Force a folder to the disk, with what is written into it beside the parts."""
    for above, _, names in os.walk(folder):
        for path in (Path(above, name) for name in names):
            if not path.is_symlink():
                atomic.sync(path)
        atomic.sync(Path(above))
