"""The seam between the core and what it trains: all that the loop knows of a task."""

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
    """What is trained, on what. Every method but `module` is free of side effects."""

    def module(self) -> nn.Module:
        """The module on the CPU; `forward(micro) -> sum of losses` (scalar, differentiable). What is not trained has
        requires_grad False."""

    def blocks(self, module: nn.Module) -> Iterable[nn.Module]:
        """The repeated layers: units of sharding, compilation and recomputation."""

    def rate(self, name: str) -> float:
        """Learning rate of a parameter, relative to `train.lr`, by its name in `module()`."""

    def all_used(self) -> bool:
        """Whether every parameter that is trained has a gradient in every step; if not, DDP looks for those that have
        none, which costs a pass over the graph a step."""

    def size(self) -> int:
        """Samples of one epoch."""

    def batch(self, first: int, count: int, rank: int, world: int) -> Batch:
        """Positions [first, first + count) of the stream, this rank's part. Pure; runs in a data worker."""

    def identity(self) -> str:
        """Hash of what training begins from: the weights, and the samples in their order where these are planned. A
        checkpoint of another one is refused."""

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the trained model for others; weights: full tensors of the parameters that were trained."""


@runtime_checkable
class ReadsColumns(Protocol):
    """A task whose samples have columns beside the tars."""

    def manifests(self) -> dict[str, str]:
        """Digests of what says where the columns lie, by name; {} where they are looked for anew."""


@runtime_checkable
class HasMetaLayout(Protocol):
    """A task whose module can be made without its weights: where FSDP2 shards it, rank 0 alone reads them."""

    def layout(self) -> nn.Module:
        """`module()` on the meta device: the same names, shapes, dtypes and trained parameters, in no memory."""


@runtime_checkable
class Constrains(Protocol):
    """A task whose parameters have bounds."""

    def constrain(self, module: nn.Module) -> None:
        """Put parameters back within their bounds, in place, after the weights are loaded and after each step. Called
        without gradients; parameters may be DTensors. Must not wait for the device."""


@runtime_checkable
class Evaluates(Protocol):
    """A task that can be evaluated while it is trained (`train.evaluate_every`)."""

    def evaluate(self, module: nn.Module, occasion: EvaluationContext) -> dict[str, Any]:
        """What metrics.jsonl is to say, by name: numbers, or the path of a picture. The same on every rank.

        Called by all ranks together, without gradients, in evaluation mode, with the averaged weights where there are
        any and with the same random numbers each time. Shares the work among `occasion.ranks`. Goes through
        `module(...)` itself, equally often on every rank, since FSDP2 gathers parameters there; calls
        `occasion.between()` between batches.
        """


@dataclass(frozen=True)
class EvaluationContext:
    """When and where a task evaluates (`Evaluates.evaluate`).

    samples: that the weights have seen. directory: of the run, where pictures may go (rank 0 writes).
    between: to be called between batches, equally often on every rank: a sign of life; leaves (by an exception) as
        soon as one rank is told to stop.
    """

    samples: int
    directory: Path
    ranks: Ranks
    between: Callable[[], None]
