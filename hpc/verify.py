"""Check that every marker holds: its file is there, with the rows, bytes and (with --full) content it had when it
was published.

    python -m hpc.verify runs/demo            sizes and row counts from footers
    python -m hpc.verify runs/demo --full     also sha256, page checksums, statuses, and no file without a marker

Exit codes: 0 all markers hold, 1 some do not, 64 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from hpc.base import object_store
from hpc.base.command import command, console, end_on_closed_pipe, warn
from hpc.base.errors import Exit, Parser
from hpc.base.no_pandas import without_pandas
from hpc.base.on_all_cores import on_all_cores
from hpc.run import column as columns
from hpc.run.directory import Run, Submission
from hpc.run.ledger import DONE
from hpc.run.plan import DamagedPlan, Plan

CHUNK = 32  # shards that a process checks at a time

_MARKER = {"file": str, "bytes": int, "rows": int, "sha256": str, "counts": dict, "reasons": dict}


def check(run: Run, shard_id: str, generation: int, identity: str, column: str, *, full: bool) -> str | None:
    """What is wrong with one finished shard, None if nothing is."""
    marker = run.ledger(identity).read(shard_id, f"g{generation}.done")
    if not marker:
        return "marker is empty or not JSON"
    for key, kind in _MARKER.items():
        if not _is_a(kind, marker.get(key)):
            return f"marker is damaged: `{key}` is {marker.get(key)!r}"[:200]
    if object_store.is_url(marker["file"]):
        expected = run.column_file(column, identity, shard_id, generation).stem
        if not marker["file"].rpartition("/")[2].startswith(f"{expected}."):
            return f"marker names another file: {marker['file']}"
    elif run.path / marker["file"] != run.column_file(column, identity, shard_id, generation):
        return f"marker names another file: {marker['file']}"
    try:
        with object_store.fetched(run.locate(marker["file"])) as path:
            return _differs(path, marker, full)
    except FileNotFoundError:
        return f"column file is gone: {marker['file']}"
    except (OSError, pa.ArrowException) as error:
        return f"column file cannot be read: {error}"


def _is_a(kind: type, value: Any) -> bool:
    """Whether a marker's value is of its kind; objects hold numbers alone."""
    if isinstance(value, dict):
        return kind is dict and all(type(number) is int for number in value.values())
    return type(value) is kind


def _differs(path: Path, marker: dict, full: bool) -> str | None:
    if (size := path.stat().st_size) != marker["bytes"]:
        return f"column file has {size:,} bytes, marker says {marker['bytes']:,}"
    if (rows := pq.ParquetFile(path).metadata.num_rows) != marker["rows"]:
        return f"column file has {rows:,} rows, marker says {marker['rows']:,}"
    if sum(marker["counts"].values()) != marker["rows"]:
        return f"outcome counts add up to {sum(marker['counts'].values()):,}, marker says {marker['rows']:,} rows"
    if not full:
        return None
    if columns.sha256(path) != marker["sha256"]:
        return "sha256 differs from the marker (file changed after it was published)"
    content = asdict(columns.inspect(path))
    for what in ("counts", "reasons"):
        if content[what] != marker[what]:
            return f"{what} in the file are {content[what]}, marker says {marker[what]}"
    return None


def _check_all(
    path: Path, identity: str, column: str, full: bool, shards: list[tuple[str, int]]
) -> tuple[int, list[tuple[str, str]]]:
    """(number of shards, (id, what is wrong) of those whose markers do not hold)."""
    run = Run(path)
    problems = ((shard, check(run, shard, generation, identity, column, full=full)) for shard, generation in shards)
    return len(shards), [(shard, problem) for shard, problem in problems if problem]


def _checked(
    run: Run, latest: Submission, shards: list[tuple[str, int]], full: bool
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """The same for each chunk of shards, on all cores."""
    one = partial(_check_all, run.path, latest.identity, latest.column, full)
    chunks = [shards[start : start + CHUNK] for start in range(0, len(shards), CHUNK)]
    for _, found in on_all_cores(one, chunks):
        yield found


def planned(run: Run, latest: Submission) -> tuple[list[str] | None, list[str]]:
    """(ids of the plan, None where it cannot be read; what is wrong with files of the run other than columns)."""
    damaged = [f"submission {name} is damaged" for name in run.damaged_submissions()]
    run.generations.opened()
    damaged += [f"rerun {name} is damaged" for name in run.generations.damaged]
    try:
        stored = Plan(run.plans, latest.plan)
        stored.check()
    except DamagedPlan as error:
        return None, [str(error), *damaged]
    return list(stored.ids()), damaged


def unmarked(run: Run, column: str, identity: str, marked: set[Path]) -> Iterator[Path]:
    """Column files that no marker names. A crash between link and marker leaves them; the next epoch accepts them."""
    for path in (run.path / "columns" / column / identity).glob("*/*.parquet"):
        if path not in marked and not path.name.startswith("."):
            yield path


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.verify", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--full", action="store_true", help="read every byte")
    args = parser.parse_args(arguments)
    run = Run(args.run)
    latest = run.latest()
    ids, damaged = planned(run, latest)
    survey = run.ledger(latest.identity).survey(run.generations.opened())
    done = [(i, s) for i in (survey if ids is None else ids) if (s := survey.get(i)) and s.status == DONE]
    wrong: list[tuple[str, str]] = []
    marked = {run.column_file(latest.column, latest.identity, shard, state.generation) for shard, state in done}
    with Progress(console=warn, transient=True, disable=not warn.is_terminal) as progress:
        task = progress.add_task("verify", total=len(done))
        for count, found in _checked(run, latest, [(i, s.generation) for i, s in done], args.full):
            wrong += found
            progress.advance(task, count)
    if args.full:
        generations = {(i, s.generation) for i, s in survey.items()}
        for path in unmarked(run, latest.column, latest.identity, marked):
            shard, _, generation = path.stem.rpartition(".g")
            if not generation.isdecimal():
                console.print(f"note: {path} is not a file of this run; nobody reads it", markup=False)
            elif (shard, int(generation)) in generations:
                console.print(
                    f"note: {path.name} has no marker (a crash before its marker; it will be adopted)", markup=False
                )
    for line in damaged:
        console.print(f"verify: {line}", markup=False)
    if not wrong:
        console.print(f"verify: {len(done):,} markers hold{' (every byte read)' if args.full else ''}")
        return Exit.INCOMPLETE if damaged else Exit.COMPLETE
    console.print(f"verify: {len(wrong):,} of {len(done):,} markers do not hold:")
    for shard, problem in wrong[:50]:
        console.print(f"        {shard}  {problem}", markup=False)
    names = ",".join(shard for shard, _ in wrong)
    console.print(f"reopen them: python -m hpc.rerun {args.run} --shards {names}", markup=False)
    return Exit.INCOMPLETE


if __name__ == "__main__":
    end_on_closed_pipe()
    without_pandas()
    sys.exit(main())
