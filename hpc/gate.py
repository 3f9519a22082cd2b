"""The job between a map job and jobs that depend on it: it ends well only when all shards of the run are done.

    python -m hpc.gate runs/demo [--allow-failed N]

Later jobs cannot depend (afterok) on the array of slots itself: one slot that was scancelled, or lost its node in its
last minute, would break the chain although others finished its shards. So they depend on this job, which starts when
the array has ended, well or not:

    complete, with at most N failed shards         exit 0
    not complete, but further than at its last run  launch the run again, and requeue itself to run after that
    not complete, and no further                    exit 1, with the names of the shards that are left
    complete, and no sample is ok                   exit 1, with the reason that most have

Submitted by `hpc.launch` where the config says `cluster.gate: true`. Exit codes: 0, 1 as above, 64 wrong usage.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from hpc import config as configs
from hpc.base.errors import Exit, Parser, UserError
from hpc.map import verdict
from hpc.map.progress import first_names, unfinished_shards
from hpc.run.directory import Run
from hpc.slurm import requeue
from hpc.slurm.queue import job_of, wait_for_live_jobs

log = logging.getLogger("gate")


def decide(run: Run, allow_failed: int) -> int:
    """The gate's exit code; launches the run again where that helps."""
    opened, failed, done = unfinished_shards(run)
    if not opened:
        if done and (nothing := verdict.of_newest(run)):
            log.error("%s: what depends on it would have nothing to work with", nothing)
            return Exit.INCOMPLETE
        if len(failed) <= allow_failed:
            log.info("complete: %d shards done, %d failed (allowed: %d)", done, len(failed), allow_failed)
            return Exit.COMPLETE
        log.error("%d shards failed, %d are allowed: %s", len(failed), allow_failed, first_names(failed))
        return Exit.INCOMPLETE
    running = list(wait_for_live_jobs([j for s in run.submissions() for j in s.job_ids]))
    if running:
        return requeue.wait_for(sorted({job_of(name) for name in running}))
    for name in ("cancelled", "pause"):
        if (why := run.control_text(name)) is not None:
            log.error("%s: %s; %d shards are left: %s", name, why, len(opened), first_names(opened))
            return Exit.INCOMPLETE
    if not shutil.which("sbatch"):
        raise UserError(f"gate: {len(opened)} shards are left, and there is no sbatch here to launch again with")
    seen = run.control / f"gate-{os.environ.get('SLURM_JOB_ID', 'local')}"
    before = int(seen.read_text()) if seen.exists() else -1
    if done <= before:
        log.error("no further than before (%d done); %d shards are left: %s", done, len(opened), first_names(opened))
        return Exit.INCOMPLETE
    seen.write_text(str(done))
    log.info("%d shards are left, %d done: launching again", len(opened), done)
    from hpc.map import launch as map_launch

    latest = run.latest()
    here = {"runs": str(run.path.parent), "name": run.path.name}  # absolute: a prelude may have changed the directory
    tree = configs.with_overrides(latest.config, ["cluster.gate=false"])
    config = replace(latest.checked({**tree, **here}), overrides=latest.overrides)
    code = map_launch.submit(map_launch.prepare(config, append=latest.append))
    jobs = run.latest().job_ids
    return requeue.wait_for(jobs) if jobs else code


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.gate", description=__doc__)
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--allow-failed", type=int, default=0, help="failed shards that do not matter (default: 0)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        return decide(Run(args.run), args.allow_failed)
    except UserError as error:
        log.error("%s", error)
        return Exit.USAGE


if __name__ == "__main__":
    sys.exit(main())
