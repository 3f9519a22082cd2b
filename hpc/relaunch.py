"""The command that launches a run again as it was launched last: printed where a run ended, to be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

from hpc.base import damage
from hpc.base.errors import UserError
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run, Submission

LAUNCH = ("python", "-m", "hpc.launch")


def of(run: Run) -> list[str]:
    """Of whatever lies in a directory."""
    pipeline = PipelineRun.at(run.path)
    return of_pipeline(pipeline) if pipeline else command(run)


def command(run: Run) -> list[str]:
    """Of a map job, training or sweep, the newest launch; behind a pilot, the full run."""
    latest = run.latest()
    flags = ["--append"] if latest.append else []
    overrides = changed(latest.overrides, ["pilot=0"]) if latest.pilot else latest.overrides
    return [*_command(run, latest.source, overrides, launched_at(latest)), *flags]


def launched_at(submission: Submission) -> Path:
    """The run directory that a launch was told to make."""
    return Path(str(submission.config["runs"])).expanduser().absolute() / str(submission.config["name"])


def of_pipeline(run: PipelineRun) -> list[str]:
    try:
        launched = run.launched()
    except UserError as error:
        damage.warn_once(str(error))
        return _command(run, "", [], run.path)
    return _command(run, launched["source"], launched["overrides"], Path(launched["directory"]))


def _command(run: Run, source: str, overrides: list[str], launched: Path) -> list[str]:
    """As it was typed; where that would not lead here any more, what the run itself has kept."""
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


def changed(overrides: list[str], later: list[str]) -> list[str]:
    """Overrides with later ones in the place of earlier ones of the same key."""
    keys = {override.partition("=")[0] for override in later}
    return [o for o in overrides if o.partition("=")[0] not in keys] + later


def text(words: list[str], first: int = 79) -> str:
    """A command as the shell reads it, continued over lines of 79 characters, `first` in the first."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > (79 if lines[1:] else first):
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)
