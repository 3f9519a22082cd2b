"""One stage of a pipeline: its command, or the job that it launches. On Slurm, what its stage job runs.

    python -m hpc.pipeline.stage runs/mine --submission UUID

A stage cannot be planned before its inputs exist, so a pipeline on Slurm is a chain of small stage jobs, submitted at
once, each of which waits (afterok) for those that it needs. When its turn comes, a stage job runs its command. Or it
launches its job, requeues itself to run after it, and then looks into the run directory:

    complete                            marks the stage as finished, exit 0
    not complete, but further           launches it again: a slot that was scancelled breaks nothing
    not complete, twice no further      exit 1, saying what is left

Exit codes: 0, 1 as above, 64 wrong usage, 75 waiting for its job.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc import launching
from hpc.base import snapshot
from hpc.base.errors import NO_ANSWER, Exit, Parser, Unanswered, UserError
from hpc.base.journal import Journal
from hpc.base.processes import drain_with_parent
from hpc.gang import launch as gang_launch
from hpc.gang import sweep
from hpc.kinds import progress
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run, Submission
from hpc.slurm import requeue

log = logging.getLogger("stage")

_OURS = {"stdout.txt", "stderr.txt", "stage.json"}  # what we write into a command's directory
LAUNCHES = 2  # in a row without progress, after which a stage is given up
_SLURM_S = 1800.0  # to wait for a controller that is away; long, since a failed stage job ends the whole chain
_KILL_S = 30.0  # between TERM and KILL for a command that is to stop


class Attempt:
    """One try at a stage: what is done, and its journal."""

    def __init__(self, run: PipelineRun, submission: Submission) -> None:
        self.run, self.submission, self.record = run, submission, submission.config
        self.stage = str(self.record["stage"])
        self.folder = run.path / self.stage
        self.why = ""  # why it failed, "" while it did not
        self._journal = Journal(run.journal(submission))
        self.note("start", host=socket.gethostname(), pid=os.getpid())

    def note(self, event: str, **facts: Any) -> None:
        self._journal.write(event, **facts)

    def finish(self) -> int:
        self._end(Exit.COMPLETE, "")
        self.run.finish(self.record, self.run.seconds(self.stage))
        return Exit.COMPLETE

    def skip(self) -> int:
        """End without doing anything: the stage is finished. Its marker stays, so that its dependents stay finished."""
        self._end(Exit.COMPLETE, "")
        return Exit.COMPLETE

    def fail(self, why: str) -> int:
        self.why = why
        self._end(Exit.INCOMPLETE, why[:1000])
        return Exit.INCOMPLETE

    def _end(self, code: Exit, reason: str) -> None:
        self.note("end", code=int(code), reason=reason)
        self._journal.close()

    # --- commands -----------------------------------------------------------------------------

    def command(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Run the command here, to its end, in a directory of its own that is empty."""
        if self.folder.is_dir() and {p.name for p in self.folder.iterdir()} - _OURS:
            set_aside(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "stdout.txt", "wb") as out, open(self.folder / "stderr.txt", "wb") as err:
            try:
                process = subprocess.Popen(
                    self.record["argv"], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                    env=_environment(os.getcwd()), start_new_session=True, preexec_fn=drain_with_parent,
                )  # fmt: skip
            except OSError as error:
                return self.fail(f"{self.record['argv'][0]}: cannot be started ({error.strerror})")
            code = watch(process, stopped, _KILL_S)
        if code == 0:
            return self.finish()
        said = last_line(self.folder / "stderr.txt")
        return self.fail(f"its command exited with {code}{f': {said}' if said else ''} ({self.folder}/stderr.txt)")

    # --- jobs ---------------------------------------------------------------------------------

    def launch(self, stopped: Callable[[], bool] = lambda: False) -> tuple[int, str]:
        """Run `hpc.launch` with the stage's config. Returns its exit code, and the last line of its stderr."""
        if self.record["supersede"]:
            begin_anew(self.run.configs / f"{self.stage}.yaml")
        complaints = self.run.logs / f"{self.stage}-{self.submission.uuid}.txt"
        with open(complaints, "wb") as err:
            process = subprocess.Popen(
                launch_command(self.run, self.stage, self.record["supersede"]), stdin=subprocess.DEVNULL, stderr=err,
                env=_environment(), start_new_session=True, preexec_fn=drain_with_parent,
            )  # fmt: skip
            code = watch(process, stopped)
        if code in (
            Exit.COMPLETE,
            Exit.INCOMPLETE,
            Exit.SOME_FAILED,
        ):  # then stderr holds warnings; else the reason of the failure
            sys.stderr.write(complaints.read_text(encoding="utf-8", errors="replace"))
        return code, last_line(complaints)

    def launch_here(self, stopped: Callable[[], bool]) -> int:
        """Run the job of the stage on this machine, to its end."""
        code, said = self.launch(stopped)
        if code not in (Exit.COMPLETE, Exit.INCOMPLETE, Exit.SOME_FAILED) and said:
            return self.fail(said)
        now = progress(Run(self.folder))
        if now.complete and code in (Exit.COMPLETE, Exit.SOME_FAILED):
            return self.finish()
        return self.fail(f"{'stopped: ' if stopped() else ''}{now.left or f'hpc.launch exited with {code}'}")

    def advance(self) -> int:
        """Bring the job of the stage one step further: mark the stage as finished, wait for its job, or launch it."""
        from hpc.slurm.queue import job_of, wait_for_live_jobs

        job = Run(self.folder)
        _answered(lambda: launching.recover_lost_submissions(job))
        now, launched = progress(job), self._launched(job)
        if launched and now.complete:
            return self.finish()
        known = [i for s in job.submissions() for i in s.job_ids]
        if live := sorted({job_of(name) for name in wait_for_live_jobs(known, _SLURM_S)}):
            return requeue.wait_for(live)
        for name in ("cancelled", "pause"):
            if (why := job.control_text(name)) is not None:
                return self.fail(f"{name}: {why}; {now.left}")
        tried = [e for e in self.run.events(self.submission) if e["event"] == "launch" and e["done"] == now.done]
        if (launched and now.hopeless) or len(tried) >= LAUNCHES:
            return self.fail(now.left)
        code, said = self._launch_patiently()
        if code != Exit.COMPLETE:
            return self.fail(said or f"hpc.launch exited with {code}")
        latest = job.latest()
        self.note("launch", uuid=latest.uuid, done=now.done, inputs=self.run.inputs(self.record), jobs=latest.job_ids)
        return requeue.wait_for(latest.job_ids)

    def _launch_patiently(self) -> tuple[int, str]:
        """`launch`, tried again while Slurm's controller is away: a launch first looks for what it has submitted."""
        end = time.monotonic() + _SLURM_S
        while True:
            code, said = self.launch()
            if code != Exit.USAGE or NO_ANSWER not in said or time.monotonic() > end:
                return code, said
            time.sleep(20)

    def _launched(self, job: Run) -> bool:
        """Whether the newest launch of the job was made for this definition of the stage, with these inputs."""
        newest = job.submissions()[-1:]
        attempts = [a for a in self.run.attempts(self.stage) if a.identity == self.submission.identity]
        events = [e for a in attempts for e in self.run.events(a) if e["event"] == "launch"]
        inputs = self.run.inputs(self.record)
        return bool(newest) and any(e["uuid"] == newest[0].uuid and e["inputs"] == inputs for e in events)


def _answered(ask: Callable[[], object]) -> None:
    """Call `ask`, again and again while Slurm's controller is away. Raises Unanswered after _SLURM_S."""
    end = time.monotonic() + _SLURM_S
    while True:
        try:
            ask()
            return
        except Unanswered:
            if time.monotonic() > end:
                raise
            time.sleep(20)


def begin_anew(config: Path) -> None:
    """Move the directory of a training aside where its config asks for another training now: it would go on from
    checkpoints that were made of other data. A map job needs no such thing: it writes a new column beside the old.
    """
    checked = configs.load(config, [])
    if not checked.is_gang:
        return
    for arm in sweep.arms(checked).values() if checked.run.sweep else [checked]:
        job = gang_launch.prepare(arm, supersede=True)
        if job.previous is not None and job.previous.identity != job.identity:
            set_aside(job.run.path)


def set_aside(folder: Path) -> None:
    """Give a directory the next free name of `<name>.1`, `<name>.2`, ..."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(kept)


def launch_command(run: PipelineRun, stage: str, supersede: bool) -> list[str]:
    """The command line that launches the job of a stage."""
    more = ["--supersede"] if supersede else []
    return [sys.executable, "-P", "-m", "hpc.launch", str(run.configs / f"{stage}.yaml"), *more]


def _environment(*folders: str) -> dict[str, str]:
    """The environment of this process, with a PYTHONPATH on which its own code comes first, and `folders` last."""
    paths = [str(snapshot.ROOT), os.environ.get("PYTHONPATH", ""), *folders]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def watch(process: subprocess.Popen[bytes], stopped: Callable[[], bool], patience: float = math.inf) -> int:
    """Wait for a process that leads a session of its own; returns its exit code. Once `stopped()` is true its session
    gets TERM, and KILL `patience` seconds later.
    """
    signalled: float | None = None
    while (code := process.poll()) is None:
        if signalled is None and stopped():
            os.killpg(process.pid, signal.SIGTERM)
            signalled = time.monotonic()
        elif signalled is not None and time.monotonic() - signalled > patience:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.1)
    return code


def last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.pipeline.stage", description=__doc__)
    parser.add_argument("run", type=Path, help="the pipeline's directory")
    parser.add_argument("--submission", required=True, help="which attempt at which stage")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    attempt: Attempt | None = None
    try:
        run = PipelineRun(args.run)
        submission = run.submission(args.submission)
        attempt = Attempt(run, submission)
        os.chdir(submission.config["cwd"])
        if run.is_finished(attempt.record):
            return attempt.skip()
        code = attempt.command() if attempt.record["command"] else attempt.advance()
    except (UserError, OSError) as error:
        if attempt is None:
            log.error("%s", error)
            return Exit.USAGE
        code = attempt.fail(str(error))
    log.info("stage %s: %s", attempt.stage, attempt.why or {0: "finished"}.get(code, "waiting for its job"))
    return code


if __name__ == "__main__":
    sys.exit(main())
