"""Launch a pipeline: its stages one after another here, or all at once on Slurm.

A finished stage is not done again while its definition and the outcomes of its needs stay the same. With `--from STAGE`
that stage and all that need it count as not finished; `--only STAGE` runs that one alone. Commands run again, and jobs
go on from what is in their run directories. A job that would now make something else is refused. With --supersede it is
done anew: a map job beside its old output, a training in a fresh directory (the old one is kept as <stage>.1).
"""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from hpc import config as configs
from hpc.base import atomic, snapshot
from hpc.base.command import console, warn
from hpc.base.errors import Exit, UserError
from hpc.base.text import duration, short
from hpc.launching import check_access, check_importable, recover_lost_submissions, submit_and_record
from hpc.pipeline import outlook
from hpc.pipeline.definition import Pipeline, PipelineRequest, Stage, load
from hpc.pipeline.directory import PipelineRun, stage_facts
from hpc.pipeline.stage import Attempt
from hpc.run.directory import Run
from hpc.run.launch_lock import SUBMITTING_S, launch_lock
from hpc.slurm.jobs import StageLauncher
from hpc.slurm.queue import job_of, wait_for_live_jobs


def launch(path: str, overrides: list[str], asked: PipelineRequest, *, dry_run: bool) -> int:
    """Returns the exit code. Raises UserError for what can be seen before anything runs."""
    pipeline = load(path, overrides)
    if pipeline.cluster.kind == "slurm" and not shutil.which("sbatch"):
        warn.print("[yellow]no Slurm here (sbatch is not on PATH): a launch runs on this machine, cluster=local[/]")
        if not dry_run:
            pipeline = load(path, [*(o for o in overrides if not o.startswith("cluster")), "cluster=local"])
    again = shlex.join(["python", "-m", "hpc.launch", path, *overrides])
    run = PipelineRun(pipeline.directory)
    run.check()
    check_access(run.path, say=dry_run)
    finished, todo = _stages(pipeline, run, asked)
    for name in todo:
        if (config := pipeline.stages[name].config) is not None:
            check_importable(config)
    if dry_run:
        return outlook.dry_run(pipeline, run, finished, todo, asked)
    on_slurm = pipeline.cluster.kind == "slurm"
    if on_slurm:  # what may refuse comes before anything is written
        _live(pipeline, run)
    for name in todo if on_slurm else []:
        if set(pipeline.stages[name].needs) <= set(finished):
            outlook.check(pipeline.stages[name], asked.supersede)
    run.make()
    check_access(run.path)
    with launch_lock(run, SUBMITTING_S if on_slurm else 0.0):  # looked at again: another launch may have come first
        _, todo = _stages(pipeline, run, asked)
        jobs = _live(pipeline, run) if on_slurm else {}
        _write(pipeline, run)
        run.forget(_forgotten(pipeline, asked))
        if on_slurm:
            return _submit(pipeline, run, todo, asked, jobs)
        return _run_here(pipeline, run, todo, asked, again)


def _stages(pipeline: Pipeline, run: PipelineRun, asked: PipelineRequest) -> tuple[list[str], list[str]]:
    """(names of finished stages, names of those that this launch has to do)"""
    forgotten = _forgotten(pipeline, asked)
    finished = [name for name in run.finished(pipeline) if name not in forgotten]
    if asked.only and (missing := [n for n in pipeline.stage(asked.only).needs if n not in finished]):
        raise UserError(f"pipeline: --only {asked.only}: it needs {', '.join(missing)}, which is not finished.")
    return finished, [name for name in pipeline.stages if name not in finished and asked.only in ("", name)]


def _forgotten(pipeline: Pipeline, asked: PipelineRequest) -> list[str]:
    """Stages that count as not finished, because the launch asks for them."""
    if asked.from_stage:
        return [pipeline.stage(asked.from_stage).name, *pipeline.dependents(asked.from_stage)]
    return [pipeline.stage(asked.only).name] if asked.only else []


def _write(pipeline: Pipeline, run: PipelineRun) -> None:
    """Write the definition of the pipeline, and the config of each job as `python -m hpc.launch` reads it."""
    for stage in pipeline.stages.values():
        if stage.config is not None:
            atomic.replace(run.configs / f"{stage.name}.yaml", configs.dump(stage.tree).encode())
    stages = {s.name: {**s.record(), "kind": s.kind, "config": s.source} for s in pipeline.stages.values()}
    record: dict[str, Any] = {"source": pipeline.source, "overrides": pipeline.overrides, "name": pipeline.name}
    record |= {"directory": str(pipeline.directory), "cluster": pipeline.cluster.kind, "stages": stages}
    atomic.replace(run.config_file, configs.dump(pipeline.tree).encode())
    atomic.replace(run.record, yaml.safe_dump(record, allow_unicode=True, sort_keys=False).encode(), durable=True)
    (run.control / "cancelled").unlink(missing_ok=True)


# --- here -------------------------------------------------------------------------------------


def _run_here(pipeline: Pipeline, run: PipelineRun, todo: list[str], asked: PipelineRequest, again: str) -> int:
    """One stage after another, each a process of its own; stops at the first that fails."""
    stop: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    def stopped() -> bool:
        return bool(stop) or run.control_text("cancelled") is not None

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        for name in todo:
            stage = pipeline.stages[name]
            if run.is_finished(stage.record()):  # its needs were done again, with the same outcomes
                continue
            if why := _stage_here(pipeline, stage, run, asked, stopped):
                console.print(times(pipeline, run))
                warn.print(f"[red]stage {name} is not finished: {escape(why)}[/]")
                warn.print(f"to go on: {again}", markup=False)
                return Exit.INCOMPLETE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    console.print(times(pipeline, run))
    return Exit.COMPLETE


def _stage_here(
    pipeline: Pipeline, stage: Stage, run: PipelineRun, asked: PipelineRequest, stopped: Callable[[], bool]
) -> str:
    """Do one stage on this machine. Returns why it failed, "" if it did not."""
    if run.at_work(stage.name):
        raise UserError(f"pipeline: another launch works at stage {stage.name} of {short(run.path)} on this machine.")
    number = list(pipeline.stages).index(stage.name) + 1
    title = f"stage {number} of {len(pipeline.stages)}, {stage.name}"
    console.print(f"\n[bold]{title}[/] · {escape(stage.what)}")
    submission = run.new_submission(state="submitted", **stage_facts(pipeline, stage, run, "", asked.supersede))
    trial = Attempt(run, submission)
    try:
        code = trial.command(stopped) if stage.command else trial.launch_here(stopped)
    except (UserError, OSError) as error:
        code = trial.fail(str(error))
    if stage.command and (said := tail(trial.folder / "stdout.txt")):
        console.print(said, markup=False)
    if code == Exit.COMPLETE:
        console.print(f"[bold]{title}[/]: {duration(run.seconds(stage.name))}")
    return trial.why


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a text file."""
    found = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines() if path.exists() else []
    return "\n".join(found[-lines:])


def times(pipeline: Pipeline, run: PipelineRun) -> Table:
    """A row for each stage: state and time."""
    table = Table.grid(padding=(0, 2))
    finished = run.finished(pipeline)
    for name in pipeline.stages:
        took = duration(run.marker(name)["seconds"]) if name in finished else ""
        table.add_row(f"[bold]{name}[/]", "finished" if name in finished else "-", took, f"{short(run.path)}/{name}")
    return table


# --- on Slurm ---------------------------------------------------------------------------------


def _submit(pipeline: Pipeline, run: PipelineRun, todo: list[str], asked: PipelineRequest, jobs: dict[str, str]) -> int:
    """Submit a stage job for each stage in `todo` that has none in Slurm's queue, dependent on those of its needs.

    Args:
        jobs: ids of stage jobs in Slurm's queue by stage; the new ones are added.
    """
    code = snapshot.take(run.code)
    for name in todo:
        if name in jobs:
            console.print(f"[bold]{name:<10}[/]stage job {jobs[name]} is in Slurm's hands already")
            continue
        stage = pipeline.stages[name]
        for control in ("cancelled", "pause"):  # of an earlier time: only what comes after this launch counts
            (Run(run.path / name).control / control).unlink(missing_ok=True)
        submission = run.new_submission(**stage_facts(pipeline, stage, run, code, asked.supersede))
        after = [jobs[need] for need in stage.needs if need in jobs]
        submit_and_record(StageLauncher(run, submission, stage.cluster, after, pipeline.cluster.dependency))
        jobs[name] = submission.job_ids[0]
        behind = f" behind {', '.join(after)}" if after else ""
        console.print(f"[bold]{name:<10}[/]stage job {jobs[name]}{behind}")
    if not todo:
        console.print("every stage is finished; nothing was submitted")
    console.print(f"watch: python -m hpc.status {short(run.path)} --watch")
    return Exit.COMPLETE


def _live(pipeline: Pipeline, run: PipelineRun) -> dict[str, str]:
    """Stage jobs that Slurm still has, by stage. UserError where one is of another definition."""
    recover_lost_submissions(run)
    newest = {name: run.attempts(name)[-1:] for name in pipeline.stages}
    ids = [i for attempts in newest.values() for a in attempts for i in a.job_ids]
    alive = {job_of(name) for name in wait_for_live_jobs(ids)}
    found = {}
    for name, attempts in newest.items():
        if attempts and attempts[0].job_ids and attempts[0].job_ids[0] in alive:
            if attempts[0].identity != pipeline.stages[name].digest:
                raise UserError(
                    f"pipeline: stage {name} changed, and stage job {attempts[0].job_ids[0]} is still at work on what "
                    f"it was. Cancel first: python -m hpc.cancel {short(run.path)}"
                )
            found[name] = attempts[0].job_ids[0]
    return found
