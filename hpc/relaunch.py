"""The command that launches a run again as it was launched last: printed where a run ended, to be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from hpc.pipeline_run import PipelineRun
from hpc.rundir import Run

LAUNCH = ("python", "-m", "hpc.launch")


def command(run: Run) -> list[str]:
    """Of a map job, training or sweep, the newest launch. A run that was moved is launched where it lies."""
    latest = run.latest()
    name = str(latest.config["name"])
    then = Path(str(latest.config["runs"])).expanduser().absolute() / name
    flags = ["--append"] if latest.append else []
    return [*_command(run, latest.source, latest.overrides, then, len(Path(name).parts)), *flags]


def of_pipeline(run: PipelineRun) -> list[str]:
    launched = yaml.safe_load(run.record.read_text(encoding="utf-8"))
    then = Path(launched.get("directory", run.path))
    return _command(run, launched["source"], launched.get("overrides", []), then, 1)


def _command(run: Run, source: str, overrides: list[str], then: Path, parts: int) -> list[str]:
    """then: where the launch was told to run; parts: of the run's name."""
    if not Path(source).is_file() and run.config_file.exists():  # we are elsewhere, or it is gone
        return [*LAUNCH, _short(run.config_file)]
    if then == run.path:
        return [*LAUNCH, source, *overrides]
    if then.parts[-parts:] != run.path.parts[-parts:]:
        parts = 1
    root, name = Path(*run.path.parts[:-parts]), Path(*run.path.parts[-parts:])
    return [*LAUNCH, source, *changed(overrides, [f"runs={root}", f"name={name}"])]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def changed(overrides: list[str], later: list[str]) -> list[str]:
    """Overrides with later ones in the place of earlier ones of the same key."""
    keys = {override.partition("=")[0] for override in later}
    return [o for o in overrides if o.partition("=")[0] not in keys] + later


def text(words: list[str], width: int = 79) -> str:
    """A command as the shell reads it, continued over lines where it is longer than the screen."""
    lines = [""]
    for word in map(shlex.quote, words):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > width:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)
