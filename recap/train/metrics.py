"""Writes metrics.jsonl, the record of a training. TensorBoard and wandb are mirrors of it.

Lines of an evaluation have `"kind": "evaluation"`; all others are about training steps.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpc.base.errors import UserError
from recap import device as gpu

log = logging.getLogger(__name__)


class Metrics:
    """The writer, on rank 0. A line is one write(2). Checkpoints hold the file's length, to which `resume` cuts it."""

    def __init__(self, path: Path, trackers: list[str]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._trackers = [_tracker(name, path.parent) for name in trackers]

    @property
    def bytes(self) -> int:
        return os.fstat(self._fd).st_size

    def resume(self, size: int) -> None:
        """Cut off the lines that were written after the checkpoint that training resumes from. size: bytes then."""
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
    """An event file in <run>/tensorboard. (accelerate's tracker is not used: it changes torch's number of threads.)"""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of wandb, which is continued after restarts. It gets only numbers: no git remote, arguments or output,
    which may contain a password."""

    def __init__(self, folder: Path) -> None:
        wandb: Any = importlib.import_module("wandb")  # imported by name, so that type checkers work without it
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
    """Rates and times between two lines of metrics.jsonl, by this rank's clocks."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self._since = time.monotonic()
        self._left_out = 0.0
        self._tokens = self._useful = self._samples = 0
        self._flops = 0.0
        self._phases: dict[str, list[Span]] = {}
        if self._cuda:
            gpu.restart_peak()

    @contextmanager
    def phase(self, name: str, *, host: bool = False, left_out: bool = False) -> Iterator[None]:
        """Measure the time of what runs inside the `with`, on the device's clock where there is a device.

        Args:
            host: measure on the host's clock.
            left_out: nothing is trained meanwhile, so that rates do not count this time.
        """
        start = time.monotonic()
        span = Span(self._cuda and not host)
        try:
            yield
        finally:
            span.end()
            self._phases.setdefault(name, []).append(span)
            if left_out:
                self._left_out += time.monotonic() - start

    def add(self, samples: int, tokens: float, useful: float, flops: float) -> None:
        self._samples += samples
        self._tokens += int(tokens)
        self._useful += int(useful)
        self._flops += flops

    def take(self, peak: float | None, world: int) -> Measured:
        """The measurements since the last call; start again. peak: the device's FLOP/s, None where not known."""
        seconds = max(time.monotonic() - self._since - self._left_out, 1e-9)
        rates = {
            "samples_per_s": round(self._samples / seconds, 3),
            "tokens_per_s": round(self._useful / seconds, 1),
            "padding": round(1 - self._useful / self._tokens, 4) if self._tokens else 0.0,
        }
        if peak:
            rates["mfu"] = round(self._flops / seconds / (peak * world), 4)
        found = Measured(rates, seconds, self._phases, _peak_memory(self._cuda))
        self.restart()
        return found


class Span:
    """The time from construction to `end()`, by events in the device's stream, or by the host's clock."""

    def __init__(self, device: bool) -> None:
        self._events: tuple[Any, ...] = ()
        self._start, self._seconds = time.monotonic(), 0.0
        if device:
            self._events = (gpu.mark(timing=True), gpu.event(timing=True))

    def end(self) -> None:
        self._seconds = time.monotonic() - self._start
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """The measured time. Waits until the device has reached the end."""
        if self._events:
            self._events[1].synchronize()
            self._seconds, self._events = self._events[0].elapsed_time(self._events[1]) / 1000, ()
        return self._seconds


@dataclass
class Measured:
    """Measurements between two lines. peak_memory: bytes of the device, or of the process on a CPU."""

    rates: dict[str, float]
    _seconds: float
    _phases: dict[str, list[Span]]
    peak_memory: int

    def facts(self) -> dict[str, float]:
        """Rates, the share of time that waited for data, and seconds of each phase. Waits for the device."""
        times = {name: sum(span.seconds() for span in spans) for name, spans in self._phases.items()}
        waited = min(times.get("data", 0.0) / self._seconds, 1.0)
        return self.rates | {"data_wait": round(waited, 4)} | {f"s/{name}": round(t, 4) for name, t in times.items()}


def _peak_memory(cuda: bool) -> int:
    """Bytes: of the device since the last reset, or of the process since its start."""
    if cuda:
        return gpu.peak()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
