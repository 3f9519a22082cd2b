"""The status of a run, whatever its kind: a map job, a training, a sweep or a pipeline."""

from __future__ import annotations

from typing import Any

from hpc import kinds
from hpc.kinds import View
from hpc.pipeline import status as pipeline_status
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run


def view(run: Run, by: str | None = None) -> View:
    """How to read the run's status and how to print it. by: see `kinds.job_view`."""
    whole = PipelineRun(run.path)
    if whole.record.exists():
        return View(lambda: pipeline_status.read_status(whole), pipeline_status.render)
    return kinds.job_view(run, by)


def read_any_status(run: Run) -> dict[str, Any]:
    """The facts, as `hpc.status --json` prints them."""
    return view(run).read()
