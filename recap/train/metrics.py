"""metrics.jsonl: the truth about a training's course. TensorBoard and wandb are mirrors of it.

Lines of an evaluation say so (`"kind": "evaluation"`); all others are of the training.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from hpc.errors import UserError

log = logging.getLogger(__name__)


class Metrics:
    """The writer (rank 0). A line is one write(2); its length is part of a checkpoint, and resume cuts to it."""

    def __init__(self, path: Path, trackers: list[str]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._trackers = [_tracker(name, path.parent) for name in trackers]

    @property
    def bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def resume(self, size: int) -> None:
        """Forget lines written after the checkpoint that training goes on from."""
        if self.bytes > size:
            os.ftruncate(self._fd, size)

    def write(self, **facts: Any) -> None:
        line = json.dumps({**facts, "t": round(time.time(), 3)})
        os.write(self._fd, line.encode() + b"\n")
        numbers = {k: v for k, v in (facts | facts.get("counts", {})).items() if isinstance(v, (int, float))}
        for tracker in self._trackers:
            tracker.log(numbers, step=facts["step"])

    def close(self) -> None:
        os.close(self._fd)
        for tracker in self._trackers:
            tracker.finish()


def _tracker(name: str, folder: Path) -> Any:
    """One of accelerate's trackers, opened."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    try:
        if name == "wandb":
            made = LOGGER_TYPE_TO_CLASS[name](folder.name, dir=str(folder))
        else:
            made = LOGGER_TYPE_TO_CLASS[name](folder.name, logging_dir=str(folder))
        if hasattr(made, "start"):
            made.start()
    except ImportError as error:
        raise UserError(f"config: `train.trackers`: {name} is not installed ({error}). pip install {name}") from error
    return made


class Meter:
    """Rates between two lines of metrics.jsonl, by this rank's clock."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()
        self._waited = 0.0
        self._tokens = self._useful = self._samples = 0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def leave_out(self, seconds: float) -> None:
        """Time in which nothing was trained."""
        self._since += seconds

    def add(self, samples: int, tokens: float, useful: float) -> None:
        self._samples += samples
        self._tokens += int(tokens)
        self._useful += int(useful)

    def rates(self, flops: float, peak: float | None, world: int) -> dict[str, float]:
        """samples/s and useful tokens/s over all ranks, share of padding, of waiting, and of the peak (MFU)."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        found = {
            "samples_per_s": round(self._samples / seconds, 3),
            "tokens_per_s": round(self._useful / seconds, 1),
            "padding": round(1 - self._useful / self._tokens, 4) if self._tokens else 0.0,
            "data_wait": round(min(self._waited / seconds, 1.0), 4),
        }
        if peak:
            found["mfu"] = round(flops * self._useful / seconds / (peak * world), 4)
        return found
