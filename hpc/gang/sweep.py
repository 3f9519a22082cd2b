"""Launch a sweep: trainings that differ in a few keys, as one Slurm array, or one after another here.

    sweep:
      p0.2: {text.weights: {org_caption: 0.2, re_caption: 0.8}}
      p0.8: {text.weights: {org_caption: 0.8, re_caption: 0.2}}

Each arm is a gang run like any other, in runs/<name>/<arm>/. runs/<name>/ holds what they share: the array's submission
and logs, the code, and the control files of the whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.markup import escape

from hpc import config as configs
from hpc.base import snapshot
from hpc.base.command import console
from hpc.base.errors import Exit, UserError
from hpc.base.text import short
from hpc.gang import sweep_status
from hpc.gang.launch import GangJob, check_continuation, describe_details, in_background, prepare, record
from hpc.launching import (
    check_access,
    end_dry_run,
    keep_config,
    open_run,
    recover_lost_submissions,
    resolve_cluster,
    submit_to_slurm,
)
from hpc.run.directory import Run, Submission
from hpc.run.launch_lock import SUBMITTING_S, launch_lock
from hpc.slurm.jobs import SweepLauncher
from hpc.slurm.queue import live_jobs, wait_for_live_jobs

_SHARED = ("name", "runs", "operator", "trainer", "sweep", "cluster", "gang", "map", "umask", "output")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass
class Sweep:
    """A checked launch, before anything is written. states: of each arm, see `_state`."""

    config: configs.Config
    run: Run
    jobs: dict[str, GangJob]
    states: dict[str, str]

    @property
    def todo(self) -> list[str]:
        """Arms that are to be submitted: those neither complete nor in Slurm's queue."""
        return [name for name, state in self.states.items() if state in ("new", "goes on")]

    def launcher(self, submission: Submission) -> SweepLauncher:
        run = self.config.run
        return SweepLauncher(self.run, submission, run.cluster, run.gang, self.todo)


def launch(config: configs.Config, *, supersede: bool, dry_run: bool, detach: bool = False) -> int:
    """Returns the exit code. Raises UserError for what can be seen before anything runs."""
    config = resolve_cluster(config, dry_run)
    run = Run(config.directory)
    _check_place(run)
    jobs = {}
    for name, arm in arms(config).items():
        with _named(name):
            jobs[name] = prepare(arm, supersede=supersede)
    _check_different(jobs)
    if dry_run:
        return _go_on(config, run, jobs, dry_run)
    if detach and config.run.cluster.kind == "local":
        return in_background(run, config, supersede=supersede)
    config.apply_umask()
    run.make()
    check_access(run.path)
    with launch_lock(run, SUBMITTING_S if config.run.cluster.kind == "slurm" else 0.0):
        for name, job in jobs.items():  # again, since another launch may have come first
            with _named(name):
                check_continuation(job)
        return _go_on(config, run, jobs, dry_run)


def _go_on(config: configs.Config, run: Run, jobs: dict[str, GangJob], dry_run: bool) -> int:
    """Describe and submit the arms that have something to do."""
    sure = not dry_run and config.run.cluster.kind == "slurm"
    if sure:
        _recover_lost_arrays(run)
    ids = [i for job in jobs.values() if job.previous for i in job.run.latest().job_ids]
    live = wait_for_live_jobs(ids) if sure else live_jobs(ids)
    sweep = Sweep(config, run, jobs, {name: _state(job, live) for name, job in jobs.items()})
    describe(sweep)
    if not sweep.todo:
        console.print("\nnothing is left to submit")
        return Exit.COMPLETE
    return _dry_run(sweep) if dry_run else submit(sweep)


def arms(config: configs.Config) -> dict[str, configs.Config]:
    """The config of each arm."""
    made = {}
    for name, changes in config.run.sweep.items():
        where = f"config: {config.source}: `sweep.{name}`"
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _taken(config):
            raise UserError(
                f"{where}: cannot be an arm's directory. Use letters, digits, '.', '_' and '-', as in p0.2."
            )
        if not isinstance(changes, Mapping) or not changes:
            raise UserError(f"{where}: {changes!r} is no mapping of keys to values, as in {{train.lr: 1e-3}}.")
        if shared := [key for key in changes if str(key).partition(".")[0] in _SHARED]:
            raise UserError(f"{where}: `{shared[0]}` is the same for all arms. Set it beside `sweep`.")
        place = {"name": f"{config.run.name}/{name}", "sweep": {}}
        arm = configs.changed(config, {**changes, **place}, where[8:])
        made[name] = replace(arm, source=config.source, overrides=config.overrides)
    return made


def _taken(config: configs.Config) -> set[str]:
    """Names in the sweep's run directory that an arm must not have."""
    run = Run(config.directory)
    paths = [value for value in vars(run).values() if hasattr(value, "parent")]
    return {path.name for path in paths if path.parent == run.path} | {"ledger", "segments", "columns", "tally"}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Inside, a UserError gets the name of the arm."""
    try:
        yield
    except UserError as error:
        raise UserError(f"sweep, arm {name}: {error}") from error


def _check_place(run: Run) -> None:
    known = run.submissions()
    foreign = not run.is_run() and run.path.exists() and any(run.path.iterdir())
    if foreign or (known and not known[-1].config.get("sweep")):
        raise UserError(f"launch: {run.path} exists and is not a sweep's. Choose another `name=`.")


def _check_different(jobs: dict[str, GangJob]) -> None:
    seen: dict[str, str] = {}
    for name, job in jobs.items():
        if (other := seen.setdefault(job.identity, name)) != name:
            raise UserError(f"config: `sweep`: {other} and {name} are the same training (identity {job.identity}).")


def _state(job: GangJob, live: dict[str, str]) -> str:
    """new | complete | goes on (its checkpoints are used), or what squeue says of its job, such as running."""
    if job.previous is None:
        return "new"
    if job.previous.identity == job.identity and sweep_status.arm(job.run)["exit"] == Exit.COMPLETE:
        return "complete"
    return next((live[i].lower() for i in job.run.latest().job_ids if i in live), "goes on")


def _recover_lost_arrays(run: Run) -> None:
    """Find arrays whose sbatch was not seen to answer, and record in each arm which element of its array it is, where a
    launcher was killed before it had done so.
    """
    recover_lost_submissions(run)
    for submission in (s for s in run.submissions() if s.job_ids):
        everyone = [Run(run.path / name) for name in submission.config["sweep"]]
        own = [arm for arm in everyone if any(s.uuid == submission.uuid for s in arm.submissions())]
        if not all(arm.submission(submission.uuid).job_ids for arm in own):
            _write_array_ids(submission, own)


def _write_array_ids(submission: Submission, own: list[Run]) -> None:
    """Record in each arm what became of the array and which element is its own, and link to that element's log."""
    for number, arm in enumerate(own):
        mine = arm.submission(submission.uuid)
        mine.state, mine.error = submission.state, submission.error
        mine.job_ids = [f"{job}_{number}" for job in submission.job_ids]
        arm.save(mine)
        for link in (arm.logs / f"{element}.log" for element in mine.job_ids):
            if not link.is_symlink():
                link.symlink_to(f"../../logs/{link.name}")


def describe(sweep: Sweep) -> None:
    """What all arms share, then a line for each arm."""
    first, *others = (job.trainer.describe(job.ranks) for job in sweep.jobs.values())
    common = [line for line in first if all(line in lines for lines in others)]
    cluster, nodes = sweep.config.run.cluster, sweep.config.run.gang.nodes
    what = f"{cluster.unit('rank')}s"
    at_once = f", {cluster.parallel} at a time" if cluster.parallel else ""
    shape = f"{len(sweep.jobs)} arms × {nodes} nodes × {cluster.workers_per_node} {what}"
    where = f"{at_once} · {cluster.time} a life, requeued" if cluster.kind == "slurm" else " here, one after another"
    lines = [*common, ("sweep", shape + where)]
    for name, job in sweep.jobs.items():
        changes = " ".join(f"{key}={value}" for key, value in sweep.config.run.sweep[name].items())
        lines.append((name, f"{changes} · identity {job.identity} · {sweep.states[name]}"))
    lines.append(("output", f"{short(sweep.run.path)}/<arm>/exports/final/"))
    for label, text in lines:
        console.print(f"[bold]{escape(label):<10}[/]{escape(text)}")


def _dry_run(sweep: Sweep) -> int:
    """Print the one batch script, or the arms' commands; leave nothing behind."""
    run = sweep.config.run
    submission = Submission.placeholder(
        plan="", column="", identity="", code=snapshot.digest(), slots=len(sweep.todo),
        config=sweep.config.resolved, source=sweep.config.source,
    )  # fmt: skip
    with _named(sweep.todo[0]):
        describe_details(sweep.jobs[sweep.todo[0]].trainer, shown=True)  # others differ in a few keys
    console.print()
    if run.cluster.kind == "slurm":
        sys.stdout.write(sweep.launcher(submission).script() + "\n")
    else:
        from hpc.gang.local import command

        for name in sweep.todo:
            job = sweep.jobs[name]
            for rank in range(job.ranks):
                sys.stdout.write(f"RANK={rank} WORLD_SIZE={job.ranks} {' '.join(command(job.run, submission))}\n")
    return end_dry_run()


def submit(sweep: Sweep) -> int:
    """Write the run directories and start the work. The intents are on disk before sbatch is called."""
    run, config = sweep.run, sweep.config
    for name in ("cancelled", "pause"):
        (run.control / name).unlink(missing_ok=True)
    submission = run.new_submission(
        plan="", column="", identity="", code=snapshot.take(run.code), slots=len(sweep.todo), config=config.resolved,
        source=config.source, overrides=config.overrides,
    )  # fmt: skip
    keep_config(run, config, "")
    own = [_recorded(sweep.jobs[name], submission) for name in sweep.todo]
    if config.run.cluster.kind == "slurm":
        try:
            return submit_to_slurm(sweep.launcher(submission), "{slots} arms")
        finally:
            _write_array_ids(submission, own)
    return _run_here(sweep, submission)


def _recorded(job: GangJob, submission: Submission) -> Run:
    """Make an arm's run directory, with a submission that has the uuid of the array's."""
    open_run(job.run, job.config, job.identity, job.previous)
    code = snapshot.take(job.run.code)
    job.run.save(Submission(submission.uuid, submission.created, **record(job, code)))
    return job.run


def _run_here(sweep: Sweep, submission: Submission) -> int:
    """One arm after another; a failed one does not keep the others from being run."""
    from hpc.gang.local import supervise

    submission.state = "submitted"
    sweep.run.save(submission)
    for name in sweep.todo:
        job = sweep.jobs[name]
        if sweep.run.control_text("cancelled") is not None:
            break
        console.print(f"\n[bold]{escape(name)}[/]")
        _, stopped = supervise(job.run, job.run.submission(submission.uuid), job.ranks)
        if stopped:
            break
    facts = sweep_status.read_status(sweep.run)
    console.print()
    console.print(sweep_status.render(facts))
    return int(facts["exit"])
