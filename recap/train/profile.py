"""torch's profiler over the steps that `train.profile` names: a trace of each rank in the run's profile/."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from recap import device as gpu

log = logging.getLogger(__name__)


class Profile:
    """Traces one rank, in a format that Perfetto and chrome://tracing open.

    Args:
        steps: the first and the last step, counted from 1; empty: no trace.
        folder: for the traces.
    """

    def __init__(self, steps: Sequence[int], folder: Path, rank: int) -> None:
        self._first, self._last = steps or (0, -1)
        self._path = folder / f"steps-{self._first}-{self._last}-rank{rank}.json"
        self._profiler: torch.profiler.profile | None = None

    def begin(self, step: int) -> None:
        """To be called before each step."""
        if step == self._first:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu.available()
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profiler.start()

    def end(self, step: int) -> None:
        """To be called after each step."""
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """Write the trace, also where the training ended before the last step."""
        if self._profiler is not None:
            self._profiler.stop()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(self._path))
            log.info("steps %d to %d are traced in %s", self._first, self._last, self._path)
            self._profiler = None
