"""`TrainState`: the only thing that is checkpointed.

The learning rate, the order of the data and all random numbers are pure functions of (settings, samples), so that they
need no state of their own: `samples` is the position in the data, and `seed_step` seeds torch's generators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import _CHECKPOINT_PREFIX
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from recap.randomness import draw
from recap.train.settings import TrainSettings
from recap.train.task import Task

_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclass
class Progress:
    """The plain numbers of a state, which a checkpoint's manifest holds.

    step, samples: optimizer steps, and samples over all ranks, since the training began.
    rejected: samples that could not be used. reasons: how many for each reason.
    metrics_bytes: length of metrics.jsonl. evaluated: samples at the last evaluation.
    window: (loss, weight) of each step since the last line of metrics.jsonl, summed over ranks.
    counts: `Batch.counts`, summed over ranks and steps.
    """

    step: int = 0
    samples: int = 0
    seed: int = 0
    rejected: int = 0
    metrics_bytes: int = 0
    evaluated: int = 0
    window: list[list[float]] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


class TrainState:
    """Model, optimizer, moving average and progress. Parameters are plain tensors, or DTensors under FSDP2."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, seed: int) -> None:
        self.module, self.optimizer, self.ema = module, optimizer, ema
        self.progress = Progress(seed=seed)

    def tensors(self) -> dict[str, Any]:
        """Trained parameters, optimizer state and averages by full names, for torch.distributed.checkpoint.

        Frozen parameters are not saved: they are in the checkpoint that the training started from.
        """
        tensors: dict[str, Any] = {
            "model": get_model_state_dict(self.module, options=_TRAINED),
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer, options=_TRAINED),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.averages
        return tensors

    def load(self, tensors: dict[str, Any], progress: Progress) -> None:
        """Load the dict of `tensors()`, after torch.distributed.checkpoint filled it."""
        set_model_state_dict(self.module, tensors["model"], options=_TRAINED)
        set_optimizer_state_dict(self.module, self.optimizer, tensors["optimizer"], options=_TRAINED)
        if self.ema is not None:
            self.ema.averages = tensors["ema"]
        self.progress = progress

    def weights(self) -> dict[str, torch.Tensor]:
        """On rank 0, full CPU tensors of the trained parameters, or of their average where there is one; {}
        elsewhere."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        if self.ema is not None:
            with self.ema.swapped():  # copied: on a CPU these are the parameters themselves
                found = _named(get_model_state_dict(self.module, options=options))
                return {name: tensor.clone() for name, tensor in found.items()}
        return _named(get_model_state_dict(self.module, options=options))


def _named(tensors: Any) -> dict[str, torch.Tensor]:
    return dict(tensors)


class Ema:
    """Exponential moving average of the trained parameters, sharded like them.

    Args:
        horizon: samples after which the weight of an old value is 1/e.
    """

    def __init__(self, module: nn.Module, horizon: int) -> None:
        self.horizon = horizon
        self._sharded = [child for child in module.modules() if isinstance(child, FSDPModule)]
        self.trained = {name: p.detach() for name, p in own_parameters(module).items() if p.requires_grad}
        self.averages = {name: p.clone() for name, p in self.trained.items()}

    @torch.no_grad()
    def update(self, samples: int) -> None:
        """Update the averages. samples: how many the parameters were trained on since the last update."""
        names = list(self.averages)
        share = -math.expm1(-samples / self.horizon)
        torch._foreach_lerp_([self.averages[n] for n in names], [self.trained[n] for n in names], share)

    def reshard(self) -> None:
        """Free gathered parameters: after a forward pass without a backward pass, FSDP2 keeps the outermost ones."""
        for child in self._sharded:
            child.reshard()

    def swapped(self) -> _Swapped:
        """A context in which the module's parameters are the averages."""
        return _Swapped(self)


class _Swapped:
    def __init__(self, ema: Ema) -> None:
        self._ema = ema

    def _exchange(self) -> None:
        self._ema.reshard()
        with torch.no_grad():
            for name, parameter in self._ema.trained.items():
                average = self._ema.averages[name]
                kept = parameter.clone()
                parameter.copy_(average)
                average.copy_(kept)

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators (dropout, noise) by the step, so that their state need not be saved."""
    torch.manual_seed(draw(seed, "step", step, rank) >> 1)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their names in `Task.module()`, without the prefixes of wrappers (DDP, recomputation)."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    return {name.replace(_CHECKPOINT_PREFIX, ""): parameter for name, parameter in inner.named_parameters()}


def decayed(module: nn.Module) -> set[nn.Parameter]:
    """The parameters that have weight decay: weights of linear layers, convolutions and attention. Norms, biases,
    embeddings (of tokens, positions, classes; tables of shifts) and temperatures have none."""
    kernels: set[nn.Parameter] = set()
    others: set[nn.Parameter] = set()
    for child in module.modules():
        for leaf, parameter in child.named_parameters(recurse=False):
            embeds = isinstance(child, nn.Embedding) or leaf.endswith(("embedding", "table"))
            (others if embeds or parameter.ndim < 2 else kernels).add(parameter)
    return kernels - others


def optimizer_of(module: nn.Module, task: Task, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with one group for each (relative learning rate, decayed or not). A group's `rate` is read by the schedule.

    It is the fused implementation on every device, which accepts `found_inf` (float32 scalar, on the device): where
    that is 1, a step changes nothing.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    kernels = decayed(module)
    for name, parameter in own_parameters(module).items():
        if parameter.requires_grad:
            groups.setdefault((task.rate(name), parameter in kernels), []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": params, "rate": scale, "weight_decay": settings.weight_decay if kernel else 0.0}
        for (scale, kernel), params in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(made, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
