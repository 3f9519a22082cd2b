"""Makes the lines of metrics.jsonl about training steps without waiting for the device: a line that is due is written
one step later, when its numbers have arrived."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from recap.train.metrics import Measured, Meter, Metrics
from recap.train.parallel import AsyncScalar, peak_flops
from recap.train.ranks import Ranks
from recap.train.state import TrainState

log = logging.getLogger(__name__)


@dataclass
class Window:
    """The steps since the last line, on this rank.

    sums: the sum of losses of each step, on the device. weights: the weight of each step, over all ranks.
    counts: see `Batch.counts`. reasons: how many samples were rejected for each reason.
    """

    sums: list[torch.Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class Line:
    """A line whose numbers are still being copied from the device. facts: numbers that are known already."""

    window: Window
    sums: AsyncScalar
    norm: AsyncScalar
    measured: Measured
    facts: dict[str, Any]


class Recorder:
    """Collects and writes lines. Every method but `add` must be called by all ranks at the same step.

    Args:
        metrics: rank 0's file, None elsewhere.
    """

    def __init__(self, state: TrainState, ranks: Ranks, metrics: Metrics | None) -> None:
        self._state, self._ranks, self._metrics = state, ranks, metrics
        self.meter = Meter(ranks.device)
        self._peak = peak_flops(ranks.device)
        self._window = Window()
        self._line: Line | None = None

    def rejected(self, reasons: Iterable[str]) -> None:
        """Count samples of this rank that were rejected, by reason. Details in brackets at a reason's end are left
        out."""
        self._window.reasons.update(reason.partition(" (")[0] for reason in reasons)

    def add(self, loss: torch.Tensor, weight: float, counts: dict[str, float]) -> None:
        """Add a step. loss: this rank's sum of losses, on the device. weight: what the sum over ranks is divided by."""
        window = self._window
        window.sums.append(loss)
        window.weights.append(weight)
        window.counts = {name: window.counts.get(name, 0.0) + count for name, count in counts.items()}

    def take(self, norm: AsyncScalar, **facts: Any) -> None:
        """Begin a line about the steps since the last one. norm: of the last gradient. facts: further numbers."""
        measured = self.meter.take(self._peak, self._ranks.world)
        self._line = Line(self._window, AsyncScalar(torch.stack(self._window.sums)), norm, measured, facts)
        self._window = Window()

    def write(self) -> bool:
        """Write the line that is due, if there is one."""
        if self._line is None:
            return False
        line, self._line, progress = self._line, None, self._state.progress
        self._reduce(line.window, line.sums)
        loss = math.fsum(s for s, _ in progress.window) / max(math.fsum(w for _, w in progress.window), 1.0)
        progress.window = []
        memory = self._ranks.largest(line.measured.peak_memory)
        measured, left = line.measured.facts(), line.facts["total"] - line.facts["samples"]
        facts = {
            **line.facts, "loss": loss, "grad_norm": line.norm.values()[0], **measured,
            "peak_memory_gb": round(memory / 1e9, 3),
            "eta_s": round(left / measured["samples_per_s"], 1) if measured["samples_per_s"] else None,
            **({"counts": progress.counts} if progress.counts else {}),
            **({"reasons": progress.reasons} if progress.reasons else {}),
        }  # fmt: skip
        if self._metrics is not None:
            self._metrics.write(**facts)
            log.info(
                "step %d  %s of %s samples  loss %.4f  %.1f samples/s  %.0f tokens/s  waiting %.0f %%", facts["step"],
                f"{facts['samples']:,}", f"{facts['total']:,}", loss, facts["samples_per_s"], facts["tokens_per_s"],
                100 * facts["data_wait"],
            )  # fmt: skip
        return True

    def add_unreported(self) -> None:
        """Add the steps without a line to the progress, for a checkpoint."""
        if self._window.sums:
            self._reduce(self._window, AsyncScalar(torch.stack(self._window.sums)))
            self._window = Window()

    def _reduce(self, window: Window, sums: AsyncScalar) -> None:
        """Add steps, summed over ranks, to the progress. They are added one by one, so that the curve is bitwise the
        same wherever checkpoints are."""
        progress, names = self._state.progress, list(window.counts)
        found = self._ranks.sums(sums.values() + list(window.counts.values()))
        progress.window += [[s, w] for s, w in zip(found[: len(window.weights)], window.weights, strict=True)]
        for name, count in zip(names, found[len(window.weights) :], strict=True):
            progress.counts[name] = progress.counts.get(name, 0.0) + count
        if sum(progress.reasons.values()) < progress.rejected:  # the same on every rank
            progress.reasons = self._ranks.tally(progress.reasons, window.reasons)
