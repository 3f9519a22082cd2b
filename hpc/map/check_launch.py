"""`hpc.launch CONFIG --check`: before anything is submitted, try the work on a few of the run's own samples.

The launcher loads no model: hpc.map.check does, in a process of its own. Here that leaves nothing behind; under Slurm
it is a job with the resources of one slot, which writes its answer into the run directory and is waited for.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from hpc.base import snapshot
from hpc.base.command import console, warn
from hpc.base.errors import Exit, UserError
from hpc.base.text import printable, short
from hpc.launching import check_access, say
from hpc.map import check as trial
from hpc.map.launch import Job, freeze
from hpc.operator import Shard
from hpc.run.directory import Run, Submission
from hpc.slurm import commands as slurm

_LATE_S = 10.0  # that a shared file system may take to show the answer of a job that has ended


def launch(job: Job) -> int:
    """Returns the exit code: 0 where the work works, 1 where it does not."""
    if len(job.shards) == len(job.missing):
        raise UserError("launch: --check: no shard of this plan exists.")
    try:
        code = _on_slurm(job) if job.config.run.cluster.kind == "slurm" else _here(job)
    except KeyboardInterrupt:
        warn.print("[yellow]the check was stopped[/]")
        code = Exit.INCOMPLETE
    console.print("nothing was submitted (--check)")
    return code


def _write(run: Run, job: Job) -> Submission:
    """Write what the check has to know into a run directory. The submission is not saved: no launch is on record."""
    run.make()
    submission = Submission(
        uuid.uuid4().hex[:12], time.time(), plan="", identity=job.identity, column=job.operator.column().name,
        code=snapshot.take(run.code), slots=1, config=job.config.resolved, source=job.config.source,
    )  # fmt: skip
    missing = {shard.id for shard in job.missing}
    freeze(job.operator, run.frozen)
    trial.write(run, submission, [_here_if_frozen(run, shard) for shard in job.shards if shard.id not in missing])
    return submission


def _here_if_frozen(run: Run, shard: Shard) -> Shard:
    """The shard; where its file is one that the plan froze, as it lies in this run directory, not in the run's own."""
    frozen = run.frozen / Path(shard.uri).name
    return replace(shard, uri=str(frozen)) if frozen.exists() else shard


def _here(job: Job) -> int:
    with tempfile.TemporaryDirectory(prefix="hpc-check-") as folder:
        run = Run(folder)
        submission = _write(run, job)
        log = run.logs / "check.log"
        command = snapshot.command(
            run.code / submission.code, "hpc.map.check", str(run.path), "--check", submission.uuid
        )
        with open(log, "wb") as out:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False,
                env={**os.environ, "HPC_LOG": str(log)},
            )  # fmt: skip
        died = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"exited with {done.returncode}"
        return _print_answer(run, submission, log, died)


def _on_slurm(job: Job) -> int:
    from hpc.slurm.jobs import TrialLauncher

    run = job.run
    job.config.apply_umask()
    submission = _write(run, job)
    check_access(run.path)
    launcher = TrialLauncher(run, submission, job.config.run.cluster, job.config.run.map)
    try:
        number = launcher.submit_script()
        log = run.logs / launcher.log_pattern.replace("%j", number)
        console.print(f"\nthe check is job {number} · log: {short(log)} · Ctrl-C cancels it")
        died = _wait(number, trial.answer_file(run, submission.uuid).exists)
    except BaseException:
        _cancel(submission.uuid)
        raise
    return _print_answer(run, submission, log, died)


def _cancel(comment: str) -> None:
    """scancel the job that carries this comment, where Slurm has one: sbatch may have been cut off."""
    from hpc.slurm.queue import NoSqueueAnswer, find_job

    try:
        if number := find_job(comment):
            slurm.run(["scancel", number], timeout=60)
    except (NoSqueueAnswer, OSError, subprocess.SubprocessError) as error:
        warn.print(f"[yellow]the job of the check could not be cancelled: {escape(str(error))}[/]")


def _wait(number: str, answered: Callable[[], bool]) -> str:
    """Wait for a job's answer, saying for what it waits; "" once it is there, or how the job ended without."""
    from hpc.slurm.queue import pending, wait_for_live_jobs

    said, gone = "", 0.0
    while not answered():
        waits = pending([number]).get(number, (0, ""))[1]
        if waits not in ("", "None", said):
            console.print(f"waiting to start ({waits})", markup=False)
        said = waits or said
        if waits or wait_for_live_jobs([number]):
            gone = 0.0
        elif not gone:
            gone = time.monotonic()
        elif time.monotonic() - gone > _LATE_S:
            return f"ended without an answer (job {number})"
        time.sleep(1.0)
    return ""


def _print_answer(run: Run, submission: Submission, log: Path, died: str) -> int:
    """Print the answer, or the last words of a check that died; the exit code."""
    try:
        answer = json.loads(trial.answer_file(run, submission.uuid).read_bytes())
    except FileNotFoundError:
        _show(trial.last_lines(log))
        warn.print(f"[red]check: the process that tries the work {died}; its last words stand above.[/]")
        return Exit.INCOMPLETE
    for sample in answer["samples"]:
        _say_sample(sample)
    for shard in answer["unread"]:
        warn.print(f"[yellow]not readable: {escape(printable(shard))}[/]")
    where = f"on {answer['host']}, {answer['device']}"
    if answer["problem"]:
        _show(answer["said"])
        warn.print(f"[red]check: the work does not work {where}: {escape(printable(answer['problem']))}[/]")
        return Exit.INCOMPLETE
    good = sum(sample["status"] == "ok" for sample in answer["samples"])
    took = f"set up in {answer['setup_s']:.1f} s, {answer['seconds']:.1f} s for the samples"
    say("check", f"{good} of {len(answer['samples'])} samples ok {where} · {took}")
    return Exit.COMPLETE


def _show(lines: list[str]) -> None:
    """Lines of a log."""
    for line in lines:
        warn.print(f"    {printable(line)}", markup=False)


def _say_sample(sample: dict[str, Any]) -> None:
    why = f" ({sample['why']})" if sample["why"] else ""
    say("sample", printable(f"{sample['shard']} · {sample['key']} · {sample['status']}{why}"))
    for name, text in sample["values"].items():
        say("", printable(f"{name}: {text}"))
