"""The interface between the trainer core and what it trains: everything that the loop knows of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from recap.train.ranks import Ranks

if TYPE_CHECKING:
    pass


@dataclass
class Batch:
    """One rank's part of one optimizer step.

    micro: what the module's `forward` takes, one after another; equally many on every rank.
    weight: what the sum of this rank's losses is divided by, once it is summed over ranks (supervised tokens,
        pairs, images).
    tokens: tokens computed by this rank, padding included. useful: without padding.
    keys: of the whole step's samples, all ranks; named when a loss is not finite.
    rejected: (key, reason) of this rank's samples that could not be used.
    counts: what else is counted of this rank's part, by name, the same names in the same order in every batch;
        metrics.jsonl has the sums since the training began.
    flops: floating-point operations of this rank's part: forward, backward, no recomputation; for MFU.
    """

    micro: list[Any]
    weight: float
    tokens: int
    useful: int
    keys: list[str]
    rejected: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0


class Task(Protocol):
    """What is trained, on which data. Every method but `module` is free of side effects."""

    def module(self) -> nn.Module:
        """The module on the CPU. Its `forward(micro)` returns the sum of losses (a differentiable scalar). Parameters
        that are not trained have requires_grad False."""

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        """The repeated layers, which are the units of sharding, compilation and recomputation."""

    def rate(self, name: str) -> float:
        """Learning rate of a parameter, relative to `train.lr`, by its name in `module()`."""

    def all_used(self) -> bool:
        """Whether every trained parameter has a gradient in every step. If not, DDP searches for those without, by a
        pass over the graph in each step."""

    def size(self) -> int:
        """Samples of one epoch."""

    def batch(self, first: int, count: int, rank: int, world: int) -> Batch:
        """This rank's part of the stream's positions [first, first + count). Pure; runs in a data worker."""

    def identity(self) -> str:
        """Hash of the initial weights, and of the samples and their order where that is planned. A checkpoint with
        another identity is refused."""

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the trained model for others; weights: full tensors of the parameters that were trained."""


@runtime_checkable
class ReadsColumns(Protocol):
    """A task whose samples have columns beside the tars."""

    def manifests(self) -> dict[str, str]:
        """Digest of each column's manifest, by name; {} where columns are read without manifests."""


@runtime_checkable
class HasMetaLayout(Protocol):
    """A task whose module can be created without weights, so that under FSDP2 only rank 0 reads them."""

    def layout(self) -> nn.Module:
        """`module()` on the meta device: the same names, shapes, dtypes and requires_grad, without memory."""


@runtime_checkable
class Constrains(Protocol):
    """A task whose parameters have bounds."""

    def constrain(self, module: nn.Module) -> None:
        """Put parameters back within their bounds, in place, after the weights are loaded and after each step. Called
        without gradients; parameters may be DTensors. Must not wait for the device."""


@runtime_checkable
class Evaluates(Protocol):
    """A task that can be evaluated while it is trained (`train.evaluate_every`)."""

    def evaluate(self, module: nn.Module, context: EvaluationContext) -> dict[str, Any]:
        """Entries for metrics.jsonl by name: numbers, or the path of a picture. The same on every rank.

        Called by all ranks together, without gradients, in evaluation mode, with the averaged weights where there are
        any, and with the same random numbers each time. The work is to be divided among `context.ranks`. It must call
        `module(...)` itself, equally often on every rank, since FSDP2 gathers parameters there, and
        `context.between()` between batches.
        """


@dataclass(frozen=True)
class EvaluationContext:
    """The context of an evaluation (`Evaluates.evaluate`).

    samples: that the weights were trained on. directory: of the run, where rank 0 may write pictures.
    between: to be called between batches, equally often on every rank. It beats the heartbeat, and raises as soon as
        one rank is told to stop.
    """

    samples: int
    directory: Path
    ranks: Ranks
    between: Callable[[], None]
