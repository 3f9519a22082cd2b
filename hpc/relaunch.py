"""The command that launches a run again as it was launched last. Commands print it at the end, to be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

from hpc.base import damage
from hpc.base.errors import UserError
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run, Submission

LAUNCH = ("python", "-m", "hpc.launch")


def command_for(run: Run) -> list[str]:
    """The command that launches what lies in a directory again, a job or a pipeline."""
    pipeline = PipelineRun.at(run.path)
    return command_for_pipeline(pipeline) if pipeline else command_for_job(run)


def command_for_job(run: Run) -> list[str]:
    """The command of a map job, training or sweep, as it was launched last; after a pilot, that of the full run."""
    latest = run.latest()
    flags = ["--append"] if latest.append else []
    overrides = overridden(latest.overrides, ["pilot=0"]) if latest.pilot else latest.overrides
    return [*_command(run, latest.source, overrides, launched_at(latest)), *flags]


def launched_at(submission: Submission) -> Path:
    """The run directory that a launch was told to make."""
    return Path(str(submission.config["runs"])).expanduser().absolute() / str(submission.config["name"])


def command_for_pipeline(run: PipelineRun) -> list[str]:
    """The command of a pipeline; one that takes its own config.yaml where the record of its launch is damaged."""
    try:
        launched = run.launched()
    except UserError as error:
        damage.warn_once(str(error))
        return _command(run, "", [], run.path)
    return _command(run, launched["source"], launched["overrides"], Path(launched["directory"]))


def _command(run: Run, source: str, overrides: list[str], launched: Path) -> list[str]:
    """The command as it was typed. Where that would not lead to this directory any more, one with the config that the
    run has kept.
    """
    if launched != run.path or not Path(source).is_file():
        here = run.config_file
        return [*LAUNCH, str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)]
    return [*LAUNCH, source, *overrides]


def next_steps(run: Run) -> list[str]:
    """Commands that use what a finished map job or training has made; [] where its work knows none, or is gone."""
    latest = run.latest()
    try:
        config = latest.checked()
        steps = getattr(config.trainer() if config.is_gang else config.operator(), "next_steps", None)
    except (UserError, OSError):
        return []
    here = run.path.relative_to(Path.cwd()) if run.path.is_relative_to(Path.cwd()) else run.path
    return list(steps(str(here))) if steps else []


def overridden(overrides: list[str], later: list[str]) -> list[str]:
    """Overrides with later ones in the place of earlier ones of the same key."""
    keys = {override.partition("=")[0] for override in later}
    return [o for o in overrides if o.partition("=")[0] not in keys] + later


def shell_text(words: list[str], first: int = 79) -> str:
    """A command quoted for the shell, in lines of at most 79 characters. first: characters in the first line."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > (79 if lines[1:] else first):
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)
