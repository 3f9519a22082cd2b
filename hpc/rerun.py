"""Reopen shards and launch again for these alone. Each gets a fresh generation; what it had is kept.

    python -m hpc.rerun runs/demo                          the shards that failed
    python -m hpc.rerun runs/demo --shards 00031001,00077120     these, also those that are done
    python -m hpc.rerun runs/demo --samples                only samples that failed or were quarantined; good ones stay
    python -m hpc.rerun runs/demo --no-submit              slots that still run take them up by themselves (not where
                                                           files were replaced: they know the old ones)

Exit codes: 0 submitted (or nothing to do), else as hpc.launch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from hpc import config as configs
from hpc import relaunch
from hpc.base import heartbeat
from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.no_pandas import without_pandas
from hpc.base.text import short
from hpc.map import launch as map_launch
from hpc.map import status, survey
from hpc.operator import FAILED as SAMPLE_FAILED
from hpc.operator import QUARANTINED
from hpc.run import plan
from hpc.run.directory import Run, Submission
from hpc.run.journal_reader import JournalReader
from hpc.run.ledger import CLAIMED, DONE, FAILED, OPEN, State
from hpc.run.plan import Plan, as_id


def choose(run: Run, latest: Submission, wanted: list[str] | None) -> tuple[dict[str, int], Counter[str]]:
    """(the generation to open, by shard id; how many of the shards have which state now), for the `wanted` shards, or
    for all that failed.

    A shard that has no result and that nobody works on is not reopened: a launch does it anyway. One that is being
    worked on gets its next generation, which begins when the present one has ended. Raises UserError for unknown ids.
    """
    ledger = run.ledger(latest.identity)
    known = set(Plan(run.plans, latest.plan).ids())
    if wanted is None:
        opened = {i: s.generation + 1 for i, s in ledger.failed(run.generations.opened()).items() if i in known}
        return opened, Counter({FAILED: len(opened)})
    survey = ledger.survey(run.generations.opened())
    unknown = [shard for shard in wanted if shard not in known]
    if unknown:
        raise UserError(
            f"rerun: {len(unknown)} of {len(wanted)} shards are not in the plan of {run.path} (first: {unknown[0]}). "
            f"Ids look like {min(known)}."
        )
    states = {shard: survey.get(shard, State()) for shard in wanted}
    opened = {shard: state.generation + 1 for shard, state in states.items() if state.status != OPEN}
    return opened, Counter(state.status for state in states.values())


def choose_by_samples(run: Run, latest: Submission) -> dict[str, int]:
    """The generation to open for shards that have failed or quarantined samples, finished ones too."""
    ledger = run.ledger(latest.identity)
    survey = ledger.survey(run.generations.opened())
    journaled: dict[tuple[str, int], bool] = {}

    def note(shard: str, generation: int, event: dict[str, Any]) -> bool:
        if event["event"] == DONE:
            journaled[shard, generation] = _bad(event)
        return True

    JournalReader(run.journals, {s.uuid for s in run.submissions() if s.identity == latest.identity}).refresh(note)
    opened = {}
    for shard in Plan(run.plans, latest.plan).ids():
        state = survey.get(shard, State())
        bad = state.status == FAILED
        if state.status == DONE:
            at = (shard, state.generation)
            bad = journaled[at] if at in journaled else _bad(ledger.read(shard, f"g{state.generation}.done"))
        if bad:
            opened[shard] = state.generation + 1
    return opened


def _bad(marker: dict[str, Any]) -> bool:
    counts = marker.get("counts", {})
    return bool(counts.get(SAMPLE_FAILED, 0) + counts.get(QUARANTINED, 0))


def lines_about(opened: dict[str, int], states: Counter[str]) -> list[str]:
    """What becomes of the shards that were chosen, for people."""
    lines = []
    if opened:
        parts = [f"{states[FAILED]:,} that failed"] if states[FAILED] else []
        parts += [f"{states[DONE]:,} that were done, and are made again"] if states[DONE] else []
        parts += [f"{states[CLAIMED]:,} in work, which are made again after that"] if states[CLAIMED] else []
        lines.append(f"reopened {len(opened):,} shards (first: {min(opened)})" + ": " * bool(parts) + ", ".join(parts))
    if states[OPEN]:
        lines.append(f"{states[OPEN]:,} shards are not finished yet: nothing to reopen, a launch does them")
    return lines


def here(run: Run, latest: Submission, overrides: list[str]) -> configs.Config:
    """The newest launch's config with changes, for the directory that was given: the run may have moved since."""
    place = {"runs": str(run.path.parent), "name": run.path.name}
    tree = configs.with_overrides({**latest.config, **place}, overrides)
    typed = relaunch.overridden(latest.overrides, overrides)
    if relaunch.launched_at(latest) != run.path:
        typed = relaunch.overridden(typed, [f"{key}={value}" for key, value in place.items()])
    return replace(latest.checked(tree), overrides=typed)


def check_replaced(run: Run, latest: Submission, job: map_launch.Job, opened: Collection[str]) -> None:
    """Raise UserError where files of reopened shards were replaced. Slots that run compare a file with the plan that
    they were started with, and would fail these shards; those of a new launch know the files as they are now.
    """
    replaced = sorted(set(plan.changes(Plan(run.plans, latest.plan), job.shards)[1]) & set(opened))
    if replaced:
        raise UserError(
            f"rerun: the files of {len(replaced):,} of these shards are not those of the plan any more (first: "
            f"{replaced[0]}), and running slots would refuse them; nothing was reopened. When they have ended (sooner: "
            f"python -m hpc.cancel {short(run.path)}), run this command again, without --no-submit."
        )


def anyone_running(run: Run, latest: Submission) -> bool:
    """Whether slots of this run are known to live: by squeue, or as processes of this machine."""
    from hpc.slurm.queue import live_jobs

    if live_jobs(latest.job_ids):
        return True
    return bool(heartbeat.alive_here(run.slots))


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.rerun", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the execution config, e.g. map.max_failed=0.2"
    )
    parser.add_argument("--shards", help="comma-separated ids, finished ones too (default: all that failed)")
    parser.add_argument(
        "--samples", action="store_true", help="do only failed and quarantined samples again, keep the good"
    )
    parser.add_argument("--no-submit", action="store_true", help="only reopen; running slots see it within seconds")
    args = parser.parse_intermixed_args(arguments)
    run = Run(args.run)
    latest = run.latest()
    if latest.config.get("trainer"):
        again = relaunch.shell_text(relaunch.command_for_job(run))
        raise UserError(f"rerun: {run.path} is a training, which goes on from its checkpoint:\n{again}")
    if args.samples and not args.shards:
        opened = choose_by_samples(run, latest)
        states = Counter({"bad samples": len(opened)})
    else:
        opened, states = choose(
            run, latest, [as_id(typed) for typed in args.shards.split(",")] if args.shards else None
        )
    if not states.total():
        console.print(f"nothing to rerun: no {'sample' if args.samples else 'shard'} failed")
        if damaged := status.read_status(run)["shards"]["damaged"]:
            console.print(
                f"damaged, which counts as done: {damaged:,} (python -m hpc.status {short(run.path)} --damaged lists "
                f"them). Once their files are replaced: python -m hpc.rerun {short(run.path)} --shards ID,ID",
                markup=False,
            )
        return Exit.COMPLETE
    config = here(run, latest, args.overrides)
    job = map_launch.prepare(config, append=latest.append, reopened=() if args.samples else opened)
    left_to_others = args.no_submit or anyone_running(run, latest)
    if left_to_others:
        check_replaced(run, latest, job, opened)
    if opened:
        reopened = [shard for shard in job.shards if shard.id in opened]
        manifests = survey.write(run, job.operator, reopened, job.missing)
        run.generations.open(opened, "rerun", keep=args.samples, manifests=manifests)
    for line in lines_about(opened, states):
        console.print(line, markup=False)
    if left_to_others:
        console.print("running slots will take them up; nothing was submitted")
        return Exit.COMPLETE
    job.limit = states.total()
    return map_launch.submit(job)


if __name__ == "__main__":
    without_pandas()
    sys.exit(main())
