"""What all launches share: where a config really runs, the run directory, the hand-over to Slurm, and their output."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from hpc import config as configs
from hpc.base import access, atomic, shared_environment
from hpc.base.command import console, warn
from hpc.base.errors import Exit, Unanswered, UserError
from hpc.base.text import short
from hpc.config import importable
from hpc.run.directory import Run, Submission

if TYPE_CHECKING:
    from hpc.slurm.submission import Launcher


def resolve_cluster(config: configs.Config, dry_run: bool) -> configs.Config:
    """The config for where it will really run. Raises UserError for a run directory that cannot be one."""
    if "://" in config.run.runs:
        raise UserError(
            f"config: `runs`: {config.run.runs!r} is an object store. Claims need a POSIX file system that all nodes "
            "share; inputs may be remote, the run directory may not."
        )
    check_access(config.directory, say=dry_run)
    check_importable(config)
    if config.run.cluster.kind == "slurm" and not shutil.which("sbatch"):
        warn.print(
            "[yellow]no Slurm here (sbatch is not on PATH): a launch runs on this machine instead, cluster=local[/]"
        )
        if not dry_run:
            return _on(config, {"kind": "local"})
    elif config.run.cluster.kind == "slurm":
        from hpc.slurm import nodes
        from hpc.slurm.queue import max_array_size

        cluster = config.run.cluster
        prefix = str(Path(cluster.python).absolute().parent.parent) if cluster.python else sys.prefix
        if cluster.container is None and (said := shared_environment.warning(prefix)):
            warn.print(f"[yellow]{escape(said)}[/]")
        if said := nodes.too_large(cluster):
            warn.print(f"[yellow]{escape(said)}[/]")
        most = max_array_size()
        if most is not None and config.run.cluster.slots > most:
            wanted = config.run.cluster.slots
            warn.print(f"[yellow]{wanted:,} slots are more than this Slurm's MaxArraySize: {most:,} are used[/]")
            return _on(config, {**config.resolved["cluster"], "slots": most})
    return config


def check_importable(config: configs.Config) -> None:
    """Raise UserError for an operator or trainer that slots will not find; say so where a prelude may yet help."""
    if problem := importable.problem(config):
        if not config.run.cluster.prelude:
            raise UserError(problem)
        warn.print(f"[yellow]{escape(problem)} (unless cluster.prelude does so)[/]")


def _on(config: configs.Config, cluster: dict[str, object]) -> configs.Config:
    """The config on another cluster."""
    changed = configs.check({**config.resolved, "cluster": cluster}, config.source)
    return replace(changed, overrides=config.overrides)


def check_access(directory: Path, *, say: bool = True) -> None:
    """Refuse a place where a run could be replaced; say who else may write in it."""
    for warning in access.check(directory):
        if say:
            warn.print(f"[yellow]{escape(warning)} (docs/security.md)[/]")


def what_changed(old: Submission, config: configs.Config) -> str:
    """In what a config differs from that of an older submission: semantic keys, and what new versions of the work have
    changed. "" where it is neither."""
    before = old.checked()
    said = differences(old, config)
    try:
        work = before.trainer() if before.is_gang else before.operator()
        new = type(work).version
        known = next((v for v in range(new - 1, 0, -1) if configs.identity(before, work, v) == old.identity), new)
    except (UserError, OSError):  # what it was made with is gone
        known = new = 0
    if known != new:
        why = [text for version, text in sorted(getattr(type(work), "changes", {}).items()) if version > known]
        said.append(f"version {known} → {new}: {'; '.join(why) or 'the code'}")
    return ", ".join(said)


def differences(old: Submission, config: configs.Config) -> list[str]:
    """Semantic keys in which a config differs from that of an older submission."""

    def flat(tree: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}".strip(".")).items()}

    before = flat(old.checked().semantic())
    after = flat(config.semantic())
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def say(label: str, text: str) -> None:
    """One line of a plan. In a terminal it breaks between words: a number stays whole."""
    known = console.is_terminal or "COLUMNS" in os.environ
    width = max(console.width - 10, 20) if known else len(text) + 1
    parts = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, part in enumerate(parts):
        console.print(f"[bold]{'' if number else label:<9}[/] {escape(part)}")


def end_dry_run(done: str = "submitted") -> int:
    """The last line of every dry run, and its exit code."""
    console.print(f"\nnothing was {done} (--dry-run)")
    return Exit.COMPLETE


def say_next(steps: Callable[[str], list[str]] | None, run: str) -> None:
    """Commands that show or use what a finished run has made, where its work knows some."""
    for number, step in enumerate(steps(run) if steps else []):
        console.print(f"{'next' if number == 0 else '':<9}{step}", markup=False)


def open_run(run: Run, config: configs.Config, identity: str, previous: Submission | None) -> None:
    """Make the run directory, or open it again: its config.yaml, and no pause or cancellation."""
    config.apply_umask()
    run.make()
    _preflight(run)
    if run.config_file.exists() and previous and previous.identity != identity:
        run.config_file.rename(run.path / f"config.{previous.identity}.yaml")
    keep_config(run, config, identity)
    (run.control / "cancelled").unlink(missing_ok=True)
    (run.control / "pause").unlink(missing_ok=True)


def keep_config(run: Run, config: configs.Config, identity: str) -> None:
    """Write the run's config.yaml: every key, but where the run is, which is where the file lies, and its pilot."""
    other = "operator" if config.is_gang else "trainer"
    tree = {key: value for key, value in config.resolved.items() if key not in ("name", "runs", "pilot", other)}
    head = f"# {f'identity {identity}; ' if identity else ''}python -m hpc.launch takes this file as it is\n"
    atomic.replace(run.config_file, (head + configs.dump(tree)).encode())


def submit_to_slurm(launcher: Launcher, what: str) -> int:
    """sbatch, and its answer on disk; `what` is said of the job, e.g. "{slots} slots" (Slurm may allow fewer)."""
    run, submission = launcher.run, launcher.submission
    job_id = submit_and_record(launcher)
    log = launcher.log_pattern.replace("%A", job_id).replace("%j", job_id).replace("%a", "*")
    console.print(f"\nsubmitted {job_id} ({what.format(slots=submission.slots)}) · logs: {short(run.logs)}/{log}")
    console.print(f"watch: python -m hpc.status {short(run.path)} --watch")
    return Exit.COMPLETE


def submit_and_record(launcher: Launcher) -> str:
    """sbatch, and its answer on disk; the job's id. Raises Unanswered, or UserError where it is refused."""

    run, submission = launcher.run, launcher.submission
    try:
        job_id = launcher.submit_script()
    except Unanswered as error:
        submission.state, submission.error = "unanswered", str(error)
        run.save(submission)
        raise
    except UserError as error:
        submission.state, submission.error = "refused", str(error)
        run.save(submission)
        raise
    submission.state, submission.job_ids = "submitted", [job_id]
    run.save(submission)
    return job_id


def _preflight(run: Run) -> None:
    """Claims rest on link(2): it must work here, and refuse a name that exists."""
    probe = run.control / f"probe-{os.getpid()}"
    try:
        first, second = atomic.create(probe, b"1", durable=False), atomic.create(probe, b"2", durable=False)
    except OSError as error:
        raise UserError(
            f"launch: {run.path}: this file system cannot make hard links ({error}). "
            "Put `runs` on a POSIX file system that all nodes share."
        ) from error
    finally:
        probe.unlink(missing_ok=True)
    if not first or second:
        raise UserError(f"launch: {run.path}: link() does not exclude here. Put `runs` on another file system.")


def still_there(run: Run) -> str:
    """The id of a job of this run that Slurm still has, "" where there is none. Raises Unanswered."""
    from hpc.slurm.queue import wait_for_live_jobs

    recover_lost_submissions(run)
    ids = [job_id for submission in run.submissions() for job_id in submission.job_ids]
    return next(iter(wait_for_live_jobs(ids)), "")


def recover_lost_submissions(run: Run) -> list[Submission]:
    """Submissions that Slurm has although its sbatch was not seen to answer, now with their job's id. Raises
    Unanswered where Slurm does not say. Those that it does not have stay as they are: they were never taken, or another
    launch is between its intent and its sbatch.
    """
    from hpc.slurm.queue import NoSqueueAnswer, find_job

    found = []
    for submission in run.submissions():
        if submission.state not in ("intent", "unanswered") or submission.config["cluster"]["kind"] != "slurm":
            continue
        try:
            job_id = find_job(submission.uuid)
        except NoSqueueAnswer as error:
            raise Unanswered(str(error)) from error
        if job_id is not None:
            submission.state, submission.job_ids = "submitted", [job_id]
            run.save(submission)
            found.append(submission)
    return found
