"""Remove files that nobody will read again: saved blocks that no slot needs any more, and temporary files.

    python -m hpc.clean runs/demo             say what would be removed, and how much that is
    python -m hpc.clean runs/demo --delete    remove it; slots may go on working meanwhile

Saved blocks (segments) are left behind by a slot that stalled and came back after its successor had published, and by
generations that a rerun ended. Those that a rerun of bad samples still needs stay, as do those of shards that are not
done. Temporary files (.tmp-*) are left by processes that were killed; they are removed when they are older than an hour
by the clock of the file server. Published columns, markers and claims are never removed. Exit codes: 0, 64 wrong usage.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpc.base import atomic
from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, UserError
from hpc.run.directory import Run
from hpc.run.ledger import DONE, Ledger, State
from hpc.run.segments import SUFFIX

TEMPORARY_S = 3600.0  # age from which on nobody writes a temporary file any more

_SAVED = re.compile(rf"(?P<shard>.+)\.g(?P<generation>[0-9]+)(\.e[0-9]+{re.escape(SUFFIX)})?")


@dataclass
class Litter:
    """What can be removed. bytes: the sum of the files' sizes."""

    segments: list[Path] = field(default_factory=list)  # one file a claim; of an earlier version, folders
    temporary: list[Path] = field(default_factory=list)
    bytes: int = 0

    def described(self) -> str:
        return (
            f"{len(self.segments):,} saved parts that nobody reads, {len(self.temporary):,} temporary files: "
            f"{self.bytes / 2**20:,.1f} MiB"
        )


def find(run: Run) -> Litter:
    """Look through the run directory. Removes nothing."""
    found = Litter()
    for part in _superseded(run):
        found.segments.append(part)
        found.bytes += sum(size for _, size, _ in _files(part)) if part.is_dir() else _size(part)
    now, gone = _server_time(run), set(found.segments)
    for path, size, changed in _files(run.path):
        if path.name.startswith(atomic.TEMPORARY) and now - changed > TEMPORARY_S and path.parent not in gone:
            found.temporary.append(path)
            found.bytes += size
    return found


def remove(found: Litter) -> None:
    for part in found.segments:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)  # a slot of an earlier version may still write there
        else:
            part.unlink(missing_ok=True)
    for path in found.temporary:
        path.unlink(missing_ok=True)


def _superseded(run: Run) -> Iterator[Path]:
    """What claims have saved, of all identities, that no slot and no rerun will read again."""
    opened = run.generations.opened()
    for identity in _folders(run.path / "segments"):
        ledger = run.ledger(identity.name)
        survey = ledger.survey(opened)
        for bucket in _folders(identity):
            for name in sorted(os.listdir(bucket)):
                if match := _SAVED.fullmatch(name):
                    shard, generation = match["shard"], int(match["generation"])
                    if not _needed(run, ledger, shard, generation, survey.get(shard, State())):
                        yield bucket / name


def _needed(run: Run, ledger: Ledger, shard: str, generation: int, state: State) -> bool:
    """Whether a slot or a rerun may still read what was saved of this generation of a shard."""
    if generation == state.generation:
        return state.status != DONE
    if generation != state.generation - 1:
        return generation > state.generation
    # A rerun of bad samples takes over what the generation before it saved, unless that published.
    inherits = run.generations.keeps(shard, state.generation) and not state.terminal
    return inherits and not ledger.read(shard, f"g{generation}.done")


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _files(path: Path) -> Iterator[tuple[Path, int, float]]:
    """(path, bytes, time of the last change) of all files below a directory. Those that vanish are left out."""
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                facts = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            yield Path(folder, name), facts.st_size, facts.st_mtime


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _server_time(run: Run) -> float:
    """The present time by the clock that stamps the files: that of a file that is made now."""
    probe = atomic.temporary(run.path / "clock")
    try:
        probe.write_bytes(b"")
        return probe.stat().st_mtime
    except OSError as error:
        raise UserError(f"clean: {run.path} cannot be written: {error}") from error
    finally:
        probe.unlink(missing_ok=True)


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.clean", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--delete", action="store_true", help="remove it (default: only say what would be removed)")
    args = parser.parse_args(arguments)
    run = Run(args.run)
    if not run.is_run():
        run.latest()  # says what it is instead
    found = find(run)
    for path in [*found.segments, *found.temporary][:20]:
        console.print(f"  {path.relative_to(run.path)}", markup=False)
    if args.delete:
        remove(found)
    console.print(f"{'removed' if args.delete else 'can be removed'}: {found.described()}", markup=False)
    if not args.delete and (found.segments or found.temporary):
        console.print(f"nothing was removed. To do so: python -m hpc.clean {args.run} --delete", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
