"""Ranks, devices, and how a module is spread over them: DDP, or FSDP2 by block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    _CHECKPOINT_PREFIX,
    checkpoint_wrapper,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from recap import device as gpu
from recap.train.ranks import Ranks
from recap.train.settings import TrainSettings
from recap.train.task import HasMetaLayout, Task

log = logging.getLogger(__name__)

FSDP_FROM = 1.5e9  # parameters; AdamW's fp32 states of fewer fit one GPU of 80 GB several times over
WHOLE = 0.25  # of a GPU's memory, that whole gradients may take between the micro-batches of a step


def build(task: Task, settings: TrainSettings, ranks: Ranks) -> nn.Module:
    """The task's module on its device, wrapped: recomputation, then compilation, then DDP or FSDP2.

    Where FSDP2 shards it and the task lays it out without weights, rank 0 alone reads them and sends each rank its
    part: the file system has one reader, and host memory one copy.
    """
    several = ranks.world > 1 and settings.parallel != "ddp"
    layout = task.layout() if several and isinstance(task, HasMetaLayout) else None
    module = task.module() if layout is None else layout
    parameters = sum(p.numel() for p in module.parameters())
    kind = settings.parallel
    if kind == "auto":
        kind = "fsdp" if ranks.world > 1 and parameters > FSDP_FROM else "ddp"
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    log.info("%s: %.3g parameters, %.3g of them trained, on %d ranks", kind, parameters, trained, ranks.world)
    if layout is not None and kind == "ddp":
        module = task.module()
    spread = _wrap(kind, task, module, settings, ranks)
    return spread if module is not layout else _fill(spread, task, ranks)


def _wrap(kind: str, task: Task, module: nn.Module, settings: TrainSettings, ranks: Ranks) -> nn.Module:
    if settings.checkpointing:
        _recompute(task, module)
    if settings.compile:
        for block in task.blocks(module):
            block.compile()
    if kind == "fsdp":
        return _fsdp(task, module, settings, ranks)
    module.to(ranks.device)
    if ranks.world == 1:
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True, find_unused_parameters=not task.all_used())


def rearranges(module: nn.Module) -> bool:
    """Whether a life's first backward pass decides how gradients are added up: DDP lays its buckets out after it, and
    where a gradient lies in its bucket decides in which order the ranks' parts are added. (Where it looks for unused
    parameters it keeps its first layout.)"""
    return isinstance(module, DistributedDataParallel) and not module.find_unused_parameters


def state_precision(settings: TrainSettings, device: torch.device) -> None:
    """How GPUs multiply fp32 numbers: in full with fp32, else in TF32, convolutions like products. Without this,
    convolutions alone would use TF32."""
    if device.type == "cuda":
        full = settings.precision == "fp32"
        torch.set_float32_matmul_precision("highest" if full else "high")
        torch.backends.cudnn.allow_tf32 = not full


def _recompute(task: Task, module: nn.Module) -> None:
    """Wrap each block that is trained, or that gradients pass through, in activation checkpointing."""
    blocks = {id(block) for block in task.blocks(module)}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in blocks:
                setattr(parent, name, checkpoint_wrapper(child))


def _fsdp(task: Task, module: nn.Module, settings: TrainSettings, ranks: Ranks) -> nn.Module:
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy()
    if settings.precision == "bf16":
        # Inputs are not cast: times and noise of a batch are to keep their bits. Autocast casts where it is safe.
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in task.blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    empty = any(p.is_meta for p in module.parameters())
    return module.to_empty(device=ranks.device) if empty else module.to(ranks.device)


def _fill(module: nn.Module, task: Task, ranks: Ranks) -> nn.Module:
    """Send rank 0's weights, and its buffers (no state dict has them all), into a sharded module."""
    whole = task.module() if ranks.rank == 0 else None
    weights = whole.state_dict() if whole else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, weights, options=options)
    buffers = dict(whole.named_buffers()) if whole else {}
    for name, buffer in module.named_buffers():
        if whole:
            buffer.copy_(buffers[name.replace(_CHECKPOINT_PREFIX, "")])
        dist.broadcast(buffer, src=0)
    return module


@contextmanager
def precision(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """bf16 arithmetic where it is asked for; FSDP2's gathered weights are bf16 already."""
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        yield


def sums_once(module: nn.Module, device: torch.device) -> bool:
    """Whether gradients are added over ranks once a step, in its last micro-batch, and not in each.

    Until they are added, FSDP2 holds them whole: 4 bytes (fp32) a trained parameter on every GPU, beside the 16 bytes
    a parameter that weights, gradients and moments take of all GPUs together. Stage 2 of the 8 B captioner takes 29
    GiB of each of 8 GPUs (benchmarks/results/sft.md); whole gradients are 30 GiB more, which 80 GB hold barely and 48
    GB do not. Added in each micro-batch they take nothing more, but 30 GiB are sent while it computes, for about a
    second. So they are held where they take at most a quarter of the memory: up to 5 B parameters at 80 GB, 8.8 B at
    141 GB.
    """
    if not isinstance(module, FSDPModule) or device.type != gpu.GPU:
        return True
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return 4 * trained <= WHOLE * gpu.memory(device)


@contextmanager
def gradient_sync(module: nn.Module, last: bool) -> Iterator[None]:
    """A micro-batch whose gradients are added over ranks, with those before it, if `last`."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def gradient_norm(module: nn.Module, clip: float) -> torch.Tensor:
    """Norm of the gradient over all ranks' shards (the same on every rank), clipped in place where clip > 0."""
    trained = [p for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip > 0:
        nn.utils.clip_grads_with_norm_(trained, clip, norm)
    whole: Any = norm
    return whole.full_tensor() if hasattr(whole, "full_tensor") else norm


def to_device(value: Any, device: torch.device) -> Any:
    """Move tensors in nested lists, dicts and dataclass-free values."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, list):
        return [to_device(v, device) for v in value]
    return value


class AsyncScalar:
    """Numbers on their way from the device; reading them waits for their own computation, not for what was queued
    after. float [] or [N]."""

    def __init__(self, value: torch.Tensor) -> None:
        self._event: Any = None
        self._value = value.detach()
        if value.is_cuda:
            place = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value = place.copy_(self._value, non_blocking=True)
            self._event = gpu.mark()

    def values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._value.flatten().tolist()


PEAKS = {  # dense bf16 FLOP/s by the device's name, from NVIDIA's data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


def peak_flops(device: torch.device) -> float | None:
    """What the device can do at most, None where that is not known (CPUs)."""
    if device.type != "cuda":
        return None
    name = gpu.name(device)
    return next((flops for known, flops in PEAKS.items() if known in name), None)
