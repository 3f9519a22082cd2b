"""`TrainState`: the only thing that is checkpointed.

The learning rate, the order of the data and every random number are pure functions of (settings, samples), so
they need no state of their own: `samples` is the data's position, and `seed_step` makes torch's generators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from recap.train.order import draw

_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclass
class Progress:
    """What a checkpoint's manifest holds of a state: plain numbers.

    window: (loss, weight), summed over ranks, of the steps since the last line of metrics.jsonl.
    counts: `Batch.counts`, summed over ranks and steps. reasons: why samples were rejected, and how many.
    evaluated: samples at the last evaluation.
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
    """Model, optimizer, moving average and progress. Tensors may be plain, or DTensors of FSDP2."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, seed: int) -> None:
        self.module, self.optimizer, self.ema = module, optimizer, ema
        self.progress = Progress(seed=seed)

    def tensors(self) -> dict[str, Any]:
        """For torch.distributed.checkpoint: trained parameters, optimizer state and averages, by full names.

        Frozen parameters are where training began from, and are not saved.
        """
        tensors: dict[str, Any] = {
            "model": get_model_state_dict(self.module, options=_TRAINED),
            "optimizer": get_optimizer_state_dict(self.module, self.optimizer, options=_TRAINED),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.averages
        return tensors

    def load(self, tensors: dict[str, Any], progress: Progress) -> None:
        """Take over what `tensors()` gave, after torch.distributed.checkpoint filled it."""
        set_model_state_dict(self.module, tensors["model"], options=_TRAINED)
        set_optimizer_state_dict(self.module, self.optimizer, tensors["optimizer"], options=_TRAINED)
        if self.ema is not None:
            self.ema.averages = tensors["ema"]
        self.progress = progress

    def weights(self) -> dict[str, torch.Tensor]:
        """Full CPU tensors of what was trained (its average, where there is one); on rank 0, {} elsewhere."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        if self.ema is not None:
            with self.ema.swapped():  # copied: on the CPU these are the parameters themselves, which are swapped back
                found = _named(get_model_state_dict(self.module, options=options))
                return {name: tensor.clone() for name, tensor in found.items()}
        return _named(get_model_state_dict(self.module, options=options))


def _named(tensors: Any) -> dict[str, torch.Tensor]:
    return dict(tensors)


class Ema:
    """Exponential moving average of the trained parameters, sharded as they are.

    Args:
        horizon: samples after which an old value weighs 1/e.
    """

    def __init__(self, module: nn.Module, horizon: int) -> None:
        self.horizon = horizon
        self._module = module
        self.averages = {name: p.detach().clone() for name, p in self._trained().items()}

    def _trained(self) -> dict[str, torch.Tensor]:
        return _named(get_model_state_dict(self._module, options=_TRAINED))

    @torch.no_grad()
    def update(self, samples: int) -> None:
        """Move towards the present parameters, which saw `samples` more."""
        trained = self._trained()
        names = list(self.averages)
        share = 1 - 2.718281828459045 ** (-samples / self.horizon)
        torch._foreach_lerp_([self.averages[n] for n in names], [trained[n].detach() for n in names], share)

    def swapped(self) -> _Swapped:
        """A context in which the module's parameters are the averages."""
        return _Swapped(self)


class _Swapped:
    def __init__(self, ema: Ema) -> None:
        self._ema = ema

    def _exchange(self) -> None:
        with torch.no_grad():
            for name, parameter in self._ema._trained().items():
                average = self._ema.averages[name]
                kept = parameter.detach().clone()
                parameter.detach().copy_(average)
                average.copy_(kept)

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make torch's generators (dropout, noise) a function of the step: nothing to save, nothing to replay."""
    torch.manual_seed(draw(seed, "step", step, rank) >> 1)


def optimizer_of(module: nn.Module, task: Any, settings: Any) -> torch.optim.AdamW:
    """AdamW with one group per (relative rate, decayed or not) that the task gives; `rate` stays for the schedule."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((task.rate(name), task.decays(name, parameter)), []).append(parameter)
    made: list[dict[str, Any]] = [
        {"params": params, "rate": scale, "weight_decay": settings.weight_decay if decayed else 0.0}
        for (scale, decayed), params in sorted(groups.items(), key=lambda item: item[0])
    ]
    cuda = any(p.is_cuda for g in made for p in g["params"])
    return torch.optim.AdamW(
        made, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=cuda or None
    )
