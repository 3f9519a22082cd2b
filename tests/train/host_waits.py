"""Which operations of a training step would make the host wait for a GPU, found without one.

The step runs on the meta device, whose numbers cannot be read: code that asks for one fails there, and says where.
Copies between the host and the device that block are collected on the way.
"""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recap.train import loop, ranks, record
from recap.train.settings import TrainSettings
from recap.train.task import Task


class Watch(TorchDispatchMode):
    """Collects blocking copies."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        places = {t.device.type for t in tensors if t.ndim or t.device.type == "meta"}
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        waits = not (
            kwargs.get("non_blocking") or (func.overloadpacket is torch.ops.aten.copy_ and args[2:3] == (True,))
        )
        indexes = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_)
        if places == {"cpu", "meta"} and ((copies and waits) or indexes):
            self.found.append(f"{func} at {_place()}")
        return out


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if "/recap/" in f.filename or "/transformers/" in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno} {frames[-1].line}" if frames else "?"


class Arrived:
    """In the place of `AsyncScalar`, which does wait, for the step before."""

    def __init__(self, value: torch.Tensor) -> None:
        self._count = value.numel()

    def values(self) -> list[float]:
        return [0.0] * self._count


def waits(task: Task, settings: TrainSettings, gang: Any, monkeypatch: Any, steps: int = 3) -> list[str]:
    """The blocking copies of the steps after the first. Raises what reading a number of the device raises."""
    joined = ranks.join

    def join(*given: Any) -> ranks.Ranks:
        met = joined(*given)
        met.device = torch.device("meta")
        return met

    def stepped(optimizer: Any, closure: Any = None) -> None:
        """torch's fused optimizer knows no meta device; the real one reads nothing (`found_inf` stays there)."""
        assert optimizer.found_inf.is_meta

    monkeypatch.setattr(ranks, "join", join)
    monkeypatch.setattr(torch, "autocast", lambda device, *_, **__: contextlib.nullcontext())  # knows no meta device
    monkeypatch.setattr(torch.optim.AdamW, "__init__", _adamw)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    for module in (loop.parallel, record):
        monkeypatch.setattr(module, "AsyncScalar", Arrived)
    training = loop.Training(task, settings, gang)
    assert all(p.is_meta for p in training.module.parameters())
    training.module.train()
    size, watch = settings.batch, Watch()
    for step in range(steps):
        batch = task.batch(step * size, size, 0, 1)
        weight = training.agree(batch)
        training.update(batch, training.gradients(batch, weight), weight)
        training.record()
        if step == 0:
            watch.__enter__()
    watch.__exit__(None, None, None)
    assert (Path(gang.directory) / "metrics.jsonl").read_text().count(
        "\n"
    ) == steps - 1  # a line each step, a step late
    return watch.found


_made = torch.optim.AdamW.__init__


def _adamw(self: Any, params: Any, **given: Any) -> None:
    _made(self, params, **given | {"fused": None})
