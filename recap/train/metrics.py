"""metrics.jsonl: the truth about a training's course. TensorBoard and wandb are mirrors of it.

Lines of an evaluation say so (`"kind": "evaluation"`); all others are of the training.
"""

from __future__ import annotations

import hashlib
import importlib
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
            tracker.close()


class TensorBoard:
    """An event file in <run>/tensorboard. Plain, since accelerate's tracker sets torch's number of threads."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of wandb, the same one in all lives of a training. It is told numbers alone: no git remote, arguments or
    output, for a remote's URL or a command may hold a password."""

    def __init__(self, folder: Path) -> None:
        wandb: Any = importlib.import_module("wandb")  # by name: type checkers need not have it
        title = "-".join(folder.parts[-3::2]) if folder.parent.name == "stages" else folder.name
        number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        quiet = wandb.Settings(disable_git=True, disable_code=True, console="off", x_disable_meta=True)
        project = os.environ.get("WANDB_PROJECT", "recap")
        try:
            self._run = wandb.init(
                project=project, name=title, id=number, resume="allow", dir=str(folder), settings=quiet
            )
        except wandb.Error as error:
            raise UserError(
                f"config: `train.trackers`: wandb does not start ({error}). Log in, or set WANDB_MODE=offline"
            ) from error

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[TensorBoard] | type[WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def _tracker(name: str, folder: Path) -> TensorBoard | WandB:
    try:
        return TRACKERS[name](folder)
    except ImportError as error:
        raise UserError(f"config: `train.trackers`: {name} is not installed ({error}). pip install {name}") from error


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
