"""Pilots at a launch: drawing one, or finding the one that the run is to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import groupby

from hpc.base import atomic
from hpc.base.command import console
from hpc.base.errors import UserError
from hpc.base.text import short
from hpc.config import Config
from hpc.map.compare import LEAST_UNITS, Measure
from hpc.operator import Operator, ReadsBlocks, Shard
from hpc.run import pilot, plan
from hpc.run.directory import Run
from hpc.run.pilot import Pilot, newest

__all__ = ["compare", "described", "drawn", "newest", "shards", "write"]


def drawn(config: Config, operator: Operator, planned: Sequence[Shard], run: Run | None, identity: str) -> Pilot:
    """The pilot that a config asks for. UserError where there is none to be made.

    Args:
        run: the run, where it exists already.
    """
    if run is not None:
        survey = run.ledger(identity).survey(run.generations.opened())
        if planned and all(shard.id in survey and survey[shard.id].terminal for shard in planned):
            raise UserError(
                f"launch: `pilot`: {short(run.path)} is complete: its rows are there, a pilot would make nothing. "
                "For another prompt choose another `name=`."
            )
    counts = operator.block_counts(planned) if isinstance(operator, ReadsBlocks) else {}
    return pilot.draw(planned, config.run.pilot, counts)


def shards(made: Pilot, planned: Sequence[Shard]) -> list[Shard]:
    """The shards that a pilot has blocks of; `expected` of each is the number of samples in these blocks."""
    chosen = [shard for shard in planned if shard.id in made.blocks]
    return [replace(shard, expected=pilot.samples_in(shard, made.blocks[shard.id])) for shard in chosen]


def write(run: Run, made: Pilot, planned: Sequence[Shard]) -> str:
    """Record a pilot, with a plan of its shards; returns its name."""
    of_them = [shard for shard in planned if shard.id in made.blocks]
    return pilot.write(run, replace(made, plan=plan.write(run.plans, of_them)))


def described(made: Pilot | None, config: Config, run: Run, identity: str, planned: int) -> list[tuple[str, str]]:
    """What a launch, before it writes anything, and a dry run print of the pilot: (label, text) lines."""
    if made is not None:
        return [("pilot", made.described(planned)), ("", "the full run takes them over: the same launch with pilot=0")]
    found = newest(run, identity)
    if found is None:
        return []
    how = "what it made is taken over"
    if not config.run.map.compare:
        return [("pilot", f"{how}; its rows are not compared with the run's (map.compare)")]
    return [("pilot", f"{how}, and the run pauses where its rows are no longer like these (map.compare)")]


def next_steps(run: str) -> list[str]:
    """Commands that use a finished pilot."""
    return [f"python -m recap.pilots {run}    # and of others with other prompts", "the same launch with pilot=0"]


def compare(run: Run, config: Config, identity: str) -> str:
    """Write the measures of the rows of a run's pilot, for the comparison. Returns the name of that record, "" where
    there is nothing to compare with.

    Each launch makes it anew: by then the full run may have made more rows of the pilot's shards.
    """
    found = newest(run, identity)
    if found is None or not config.run.map.compare:
        return ""
    by_shard = groupby(pilot.saved(run, found), lambda part: part[0].id)
    made = [reduce(Measure.plus, (Measure.of(table) for _, _, table in parts)) for _, parts in by_shard]
    if len(made) < LEAST_UNITS:
        said = f"its pilot has rows of {len(made)} shards; a run is compared with one that has some of {LEAST_UNITS}"
        console.print(f"[bold]{'pilot':<10}[/]{said}")
        return ""
    name = f"{found.pilot}-{identity}"
    record = {"units": made}
    atomic.replace(run.path / "pilot" / f"{name}.like.json", atomic.as_json(record), durable=True)
    return name
