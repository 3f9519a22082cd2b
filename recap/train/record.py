"""The lines of metrics.jsonl about training, made without holding up the device: a line that is due is written a step
later, when its numbers have arrived."""

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
    """Steps of which there is no line yet, as this rank saw them.

    sums: of each step's losses, on the device; weights: of the same steps, all ranks'. counts: see `Batch.counts`.
    reasons: why samples were rejected, without particulars.
    """

    sums: list[torch.Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class Line:
    """A line whose numbers are still on their way from the device. facts: those that are known."""

    window: Window
    sums: AsyncScalar
    norm: AsyncScalar
    measured: Measured
    facts: dict[str, Any]


class Recorder:
    """Every method but `add` is called by all ranks at the same step.

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
        """Samples of this rank that were rejected. A particular of a reason stands in brackets at its end."""
        self._window.reasons.update(reason.partition(" (")[0] for reason in reasons)

    def add(self, loss: torch.Tensor, weight: float, counts: dict[str, float]) -> None:
        """A step: this rank's sum of losses, on the device, and what all ranks' sums are divided by."""
        window = self._window
        window.sums.append(loss)
        window.weights.append(weight)
        window.counts = {name: window.counts.get(name, 0.0) + count for name, count in counts.items()}

    def take(self, norm: AsyncScalar, **facts: Any) -> None:
        """A line is due of the steps so far."""
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
        """Add steps, summed over ranks, to the progress. Step by step, so that where a checkpoint falls changes no bit
        of the curve."""
        progress, names = self._state.progress, list(window.counts)
        found = self._ranks.sums(sums.values() + list(window.counts.values()))
        progress.window += [[s, w] for s, w in zip(found[: len(window.weights)], window.weights, strict=True)]
        for name, count in zip(names, found[len(window.weights) :], strict=True):
            progress.counts[name] = progress.counts.get(name, 0.0) + count
        if sum(progress.reasons.values()) < progress.rejected:  # the same on every rank
            progress.reasons = self._ranks.tally(progress.reasons, window.reasons)
