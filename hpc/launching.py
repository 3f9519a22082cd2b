"""What all launches share: on which cluster a config really runs, making the run directory, submitting to Slurm and
recording the answer, and what they print.
"""

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
    """The config with the cluster on which it will really run: this machine where there is no Slurm, fewer slots where
    Slurm allows no more. Raises UserError for a run directory that cannot be one.
    """
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
        if said := nodes.unknown_partition(cluster) or nodes.too_large(cluster):
            warn.print(f"[yellow]{escape(said)}[/]")
        most = max_array_size()
        if most is not None and config.run.cluster.slots > most:
            wanted = config.run.cluster.slots
            warn.print(f"[yellow]{wanted:,} slots are more than this Slurm's MaxArraySize: {most:,} are used[/]")
            return _on(config, {**config.resolved["cluster"], "slots": most})
    return config


def check_importable(config: configs.Config) -> None:
    """Raise UserError for an operator or trainer that slots will not find; only warn where a prelude may help."""
    if problem := importable.problem(config):
        if not config.run.cluster.prelude:
            raise UserError(problem)
        warn.print(f"[yellow]{escape(problem)} (unless cluster.prelude does so)[/]")


def _on(config: configs.Config, cluster: dict[str, object]) -> configs.Config:
    """The config with these cluster keys in place of its own."""
    changed = configs.check({**config.resolved, "cluster": cluster}, config.source)
    return replace(changed, overrides=config.overrides)


def check_access(directory: Path, *, say: bool = True) -> None:
    """Raise UserError where others could replace the run's directory; warn of who else may write in it (`say`)."""
    for warning in access.check(directory):
        if say:
            warn.print(f"[yellow]{escape(warning)} (docs/security.md)[/]")


def what_changed(old: Submission, config: configs.Config) -> str:
    """How a config differs from that of an older submission, for people: semantic keys, and what newer versions of the
    operator or trainer have changed. "" where it differs in neither.
    """
    before = old.checked()
    said = differences(old, config)
    try:
        work = before.trainer() if before.is_gang else before.operator()
        new = type(work).version
        known = next((v for v in range(new - 1, 0, -1) if configs.identity(before, work, v) == old.identity), new)
    except (UserError, OSError):  # files that the old identity was made of are gone
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
    """Print one line of a plan: a label, and a text that is wrapped between words where the terminal is narrow."""
    known = console.is_terminal or "COLUMNS" in os.environ
    width = max(console.width - 10, 20) if known else len(text) + 1
    parts = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, part in enumerate(parts):
        console.print(f"[bold]{'' if number else label:<9}[/] {escape(part)}")


def end_dry_run(done: str = "submitted") -> int:
    """Print the last line of a dry run; returns its exit code."""
    console.print(f"\nnothing was {done} (--dry-run)")
    return Exit.COMPLETE


def say_next(steps: Callable[[str], list[str]] | None, run: str) -> None:
    """Print commands that show or use what a finished run has made. steps: the work's `next_steps`, None without."""
    for number, step in enumerate(steps(run) if steps else []):
        console.print(f"{'next' if number == 0 else '':<9}{step}", markup=False)


def open_run(run: Run, config: configs.Config, identity: str, previous: Submission | None) -> None:
    """Make the run directory, or open it again: write its config.yaml, and end a pause or cancellation."""
    config.apply_umask()
    run.make()
    _preflight(run)
    if run.config_file.exists() and previous and previous.identity != identity:
        run.config_file.rename(run.path / f"config.{previous.identity}.yaml")
    keep_config(run, config, identity)
    (run.control / "cancelled").unlink(missing_ok=True)
    (run.control / "pause").unlink(missing_ok=True)


def keep_config(run: Run, config: configs.Config, identity: str) -> None:
    """Write the run's config.yaml: every key but `name` and `runs`, which follow from where it lies, and `pilot`."""
    other = "operator" if config.is_gang else "trainer"
    tree = {key: value for key, value in config.resolved.items() if key not in ("name", "runs", "pilot", other)}
    head = f"# {f'identity {identity}; ' if identity else ''}python -m hpc.launch takes this file as it is\n"
    atomic.replace(run.config_file, (head + configs.dump(tree)).encode())


def submit_to_slurm(launcher: Launcher, what: str) -> int:
    """Submit a job, record and print its id; returns the exit code. what: the job in words, such as "{slots} slots",
    since Slurm may allow fewer than were asked for.
    """
    run, submission = launcher.run, launcher.submission
    job_id = submit_and_record(launcher)
    log = launcher.log_pattern.replace("%A", job_id).replace("%j", job_id).replace("%a", "*")
    console.print(f"\nsubmitted {job_id} ({what.format(slots=submission.slots)}) · logs: {short(run.logs)}/{log}")
    console.print(f"watch: python -m hpc.status {short(run.path)} --watch")
    return Exit.COMPLETE


def submit_and_record(launcher: Launcher) -> str:
    """Submit a job and record what became of it; returns its id. Raises Unanswered, or UserError of a refusal."""
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
    """Raise UserError where link(2), which claims rest on, does not work here or does not refuse a name that exists."""
    try:
        excludes = atomic.excludes(run.control / f"probe-{os.getpid()}")
    except OSError as error:
        raise UserError(
            f"launch: {run.path}: this file system cannot make hard links ({error}). "
            "Put `runs` on a POSIX file system that all nodes share."
        ) from error
    if not excludes:
        raise UserError(f"launch: {run.path}: link() does not exclude here. Put `runs` on another file system.")


def still_there(run: Run) -> str:
    """The id of a job of this run that Slurm still has, "" where there is none. Raises Unanswered."""
    from hpc.slurm.queue import wait_for_live_jobs

    recover_lost_submissions(run)
    ids = [job_id for submission in run.submissions() for job_id in submission.job_ids]
    return next(iter(wait_for_live_jobs(ids)), "")


def recover_lost_submissions(run: Run) -> list[Submission]:
    """Find the jobs of submissions whose sbatch was not seen to answer, by their comments, and record the ids. Returns
    those that were found. The others stay as they are: Slurm never took them, or another launch is between its intent
    and its sbatch. Raises Unanswered where Slurm does not say.
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
