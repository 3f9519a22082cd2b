"""How far a run's pilot is, and how the run compares with it: for `hpc.status`."""

from __future__ import annotations

from typing import Any

from hpc.map.compare import Comparison, Estimate, Window, pilot_units
from hpc.map.pilot_watch import read_state, state_file
from hpc.run import pilot
from hpc.run.directory import Run, Submission
from hpc.run.journal_reader import JournalReader
from hpc.run.plan import Plan


def read(run: Run, latest: Submission, reader: JournalReader) -> dict[str, Any] | None:
    """How far the newest launch's pilot is, None where it makes none: its blocks, samples and shards, and how many of
    them are saved. UserError where its record is damaged.
    """
    if not latest.pilot:
        return None
    made, ledger, opened = pilot.read(run, latest.pilot), run.ledger(latest.identity), run.generations.opened()
    over = samples = left = 0
    for shard in Plan(run.plans, made.plan).shards():
        wanted = pilot.samples_in(shard, made.blocks[shard.id])
        found = reader.partial.get((shard.id, opened.get(shard.id, 0)))
        saved = min(wanted, sum(sum(counts.values()) for counts in found.blocks.values())) if found else 0
        if latest.pilot in reader.piloted.get(shard.id, ()):
            over += 1
        elif ledger.state(shard.id, opened).terminal:
            over, saved = over + 1, wanted
        else:
            left += max(0, wanted - saved)
        samples += saved
    return {
        "name": latest.pilot, "blocks": made.count, "shards": len(made.blocks), "shards_over": over,
        "samples": made.samples, "uncounted": made.uncounted, "samples_saved": samples, "samples_left": left,
        "complete": over == len(made.blocks),
    }  # fmt: skip


def line(found: dict[str, Any], plan: int) -> str:
    """What `read` found, for people. plan: shards of the whole plan."""
    most = "at most " * bool(found["uncounted"])
    said = f"{found['samples_saved']:,} of {most}{found['samples']:,} samples saved, {found['blocks']:,} blocks in "
    said += f"{found['shards']:,} of {plan:,} shards"
    return said + ("; it is complete" if found["complete"] else "")


def compared(run: Run, latest: Submission) -> dict[str, Any] | None:
    """How the newest launch compares with the run's pilot; None where it does not."""
    if not latest.compared:
        return None
    comparison = Comparison(pilot_units(run, latest.compared))
    if saved := read_state(state_file(run, latest.uuid)):
        comparison.restore(saved["steps"])
    two = comparison.windows()
    rows = [_measure(estimate, two) for estimate in comparison.estimates]
    return {"difference": comparison.difference(), "measures": rows}


def _measure(estimate: Estimate, two: tuple[Window, Window] | None) -> dict[str, Any]:
    windows = [] if two is None else [estimate.kind.of(window.made)[1] for window in two]
    shown = [estimate.kind.shown(value) for value in (estimate.mean, *windows)]
    return {"measure": estimate.kind.name, "pilot": estimate.mean, "windows": windows, "shown": shown}


def compared_line(found: dict[str, Any]) -> str:
    if not found["measures"] or not found["measures"][0]["windows"]:
        return "with its pilot, once there are 40,000 rows"
    if found["difference"]:
        return f"different from its pilot: {found['difference']}"
    shown = [f"{row['shown'][-1]} {row['measure']} ({row['shown'][0]})" for row in found["measures"]]
    return f"like its pilot: {', '.join(shown)}"
