"""Launch a gang job: check it, describe it, submit it as one Slurm job or run its ranks here.

The map side's counterpart is `hpc.launch`, which hands over to this module where the config names a trainer.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from hpc import config as configs
from hpc.base import snapshot
from hpc.base.command import console
from hpc.base.errors import Exit, UserError
from hpc.base.text import short
from hpc.launching import (
    check_access,
    end_dry_run,
    open_run,
    resolve_cluster,
    say,
    say_next,
    still_there,
    submit_to_slurm,
    what_changed,
)
from hpc.run.directory import Run, Submission
from hpc.run.launch_lock import SUBMITTING_S, launch_lock
from hpc.slurm.jobs import GangLauncher
from hpc.trainer import Trainer


@dataclass
class GangJob:
    """A checked launch, before anything is written."""

    config: configs.Config
    trainer: Trainer
    run: Run
    identity: str
    supersede: bool = False
    previous: Submission | None = None

    @property
    def ranks(self) -> int:
        return self.config.run.gang.nodes * self.config.run.cluster.workers_per_node

    def launcher(self, submission: Submission) -> GangLauncher:
        return GangLauncher(self.run, submission, self.config.run.cluster, self.config.run.gang)


def launch(config: configs.Config, *, supersede: bool, dry_run: bool, detach: bool = False) -> int:
    """Returns the exit code. Raises UserError for what can be seen before anything runs."""
    job = prepare(resolve_cluster(config, dry_run), supersede=supersede)
    describe(job)
    slurm = job.config.run.cluster.kind == "slurm"
    if dry_run or (slurm and (job.previous is None or job.previous.identity != job.identity)):
        describe_details(job.trainer, shown=dry_run)  # errors now, not after the job has waited in the queue for hours
    if detach and not dry_run and job.config.run.cluster.kind == "local":
        return in_background(job.run, config, supersede=supersede)
    return _dry_run(job) if dry_run else submit(job)


def in_background(run: Run, config: configs.Config, *, supersede: bool) -> int:
    """Start a training or a sweep on this machine so that it goes on without this terminal; the exit code."""
    from hpc.run import background

    config.apply_umask()
    run.make()
    console.print(f"\nstarted in the background · log: {short(background.launch(run, config, supersede=supersede))}")
    console.print(f"watch: python -m hpc.status {short(run.path)} --watch")
    return Exit.COMPLETE


def prepare(config: configs.Config, *, supersede: bool) -> GangJob:
    """Check everything that can be checked before anything runs. Writes nothing; raises UserError."""
    trainer = config.trainer()
    job = GangJob(config, trainer, Run(config.directory), "", supersede)
    trainer.check(job.ranks)
    _check_memory(job)
    job.identity = configs.identity(config, trainer)
    check_continuation(job)
    return job


def _check_memory(job: GangJob) -> None:
    """Let the trainer check the memory of a rank where that is known: on this machine, or by `cluster.sbatch.mem`."""
    cluster = job.config.run.cluster
    asked = re.fullmatch(r"(\d+)([KMGT]?)B?", str(cluster.sbatch.get("mem") or ""), re.IGNORECASE)
    if asked and int(asked[1]) == 0:  # all that a node has
        asked = None
    if hasattr(job.trainer, "check_memory") and (asked or cluster.kind == "local"):
        node = int(asked[1]) << _SHIFT[asked[2].upper()] if asked and cluster.kind == "slurm" else None
        job.trainer.check_memory(job.ranks, job.run.path, None if node is None else node // cluster.workers_per_node)


_SHIFT = {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}
"""By the unit of sbatch's --mem: how many bits to the left give bytes."""


def check_continuation(job: GangJob) -> None:
    """Raise UserError where an existing run is another training, whose checkpoints must not be used. Sets
    `job.previous`.
    """
    if not job.run.path.exists():
        return
    known = job.run.submissions()
    if not known:
        if any(job.run.path.iterdir()) and not job.run.is_run():
            raise UserError(f"launch: {job.run.path} exists and is not a run directory. Choose another `name=`.")
        return
    job.previous = known[-1]
    if job.previous.identity != job.identity and not job.supersede:
        what = what_changed(job.previous, job.config) or "the files it starts from"
        raise UserError(
            f"launch: what is trained changed ({what}; identity {job.previous.identity} → {job.identity}), and the "
            f"checkpoints of {short(job.run.path)} are of the old. Choose another `name=`, or say --supersede."
        )


def describe(job: GangJob) -> None:
    """The lines that a dry run and a launch both print."""
    lines = job.trainer.describe(job.ranks)
    cluster, nodes = job.config.run.cluster, job.config.run.gang.nodes
    what = f"{cluster.unit('rank')}s"
    where = f"{nodes} nodes × {cluster.workers_per_node} {what}"
    lines.append(("gang", f"{where} · {cluster.time} a life, requeued" if cluster.kind == "slurm" else where + " here"))
    lines.append(("output", f"{short(job.run.path)}/exports/final/ · identity {job.identity}"))
    for label, text in lines:
        say(label, text)


def describe_details(trainer: Trainer, *, shown: bool) -> None:
    """Make the trainer's `details`, which takes seconds, and print them if `shown`. Raises their UserError."""
    lines: list[str] = getattr(trainer, "details", list)()
    for line in ["", *lines] if shown and lines else []:
        console.print(line, markup=False)


def record(job: GangJob, code: str) -> dict[str, Any]:
    """The fields of a gang's submission: it has no plan and no column, and one slot. code: name of the snapshot."""
    return {
        "plan": "", "column": "", "identity": job.identity, "code": code, "slots": 1,
        "config": job.config.resolved, "source": job.config.source, "overrides": job.config.overrides,
    }  # fmt: skip


def _dry_run(job: GangJob) -> int:
    """Print the exact batch script, or the command of each rank; leave nothing behind."""
    submission = Submission.placeholder(**record(job, snapshot.digest()))
    console.print()
    if job.config.run.cluster.kind == "slurm":
        sys.stdout.write(job.launcher(submission).script() + "\n")
    else:
        from hpc.gang.local import command

        for rank in range(job.ranks):
            sys.stdout.write(f"RANK={rank} WORLD_SIZE={job.ranks} {' '.join(command(job.run, submission))}\n")
    return end_dry_run()


def submit(job: GangJob) -> int:
    """Write the run directory and start the work. The intent is on disk before sbatch is called."""
    on_slurm = job.config.run.cluster.kind == "slurm"
    job.config.apply_umask()
    job.run.make()
    check_access(job.run.path)
    with launch_lock(job.run, SUBMITTING_S if on_slurm else 0.0):
        check_continuation(job)  # again, since another launch may have come first
        if on_slurm and (live := still_there(job.run)):
            console.print(f"\njob {live} is this training and has not ended; nothing was submitted")
            return Exit.COMPLETE
        open_run(job.run, job.config, job.identity, job.previous)
        submission = job.run.new_submission(**record(job, snapshot.take(job.run.code)))
        if on_slurm:
            return submit_to_slurm(job.launcher(submission), f"{job.config.run.gang.nodes} nodes, {job.ranks} ranks")
        from hpc.gang.local import supervise

        code = supervise(job.run, submission, job.ranks)[0]
        if code == Exit.COMPLETE:
            say_next(getattr(job.trainer, "next_steps", None), short(job.run.path))
        return code
