"""How a module is distributed over ranks and devices: by DDP, or by FSDP2 block by block."""

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

FSDP_FROM_PARAMETERS = 1.5e9  # parameters; AdamW's fp32 states of fewer fit one GPU of 80 GB several times over
WHOLE_GRADIENTS_SHARE = 0.25  # of a GPU's memory, that whole gradients may take between the micro-batches of a step


def build(task: Task, settings: TrainSettings, ranks: Ranks) -> nn.Module:
    """The task's module on its device, wrapped: recomputation, then compilation, then DDP or FSDP2.

    Where FSDP2 shards it and the task can create it without weights, only rank 0 reads the weights and sends each rank
    its part, so that the file system has one reader, and host memory one copy.
    """
    several = ranks.world > 1 and settings.parallel != "ddp"
    layout = task.layout() if several and isinstance(task, HasMetaLayout) else None
    module = task.module() if layout is None else layout
    parameters = sum(p.numel() for p in module.parameters())
    kind = settings.parallel
    if kind == "auto":
        kind = "fsdp" if ranks.world > 1 and parameters > FSDP_FROM_PARAMETERS else "ddp"
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


def reorders_first_reduction(module: nn.Module) -> bool:
    """Whether the first backward pass reduces gradients in another order than later ones. DDP arranges its buckets anew
    after the first pass, and the order of the sum over ranks depends on a gradient's place in its bucket. Where DDP
    looks for unused parameters, it keeps its first arrangement."""
    return isinstance(module, DistributedDataParallel) and not module.find_unused_parameters


def state_precision(settings: TrainSettings, device: torch.device) -> None:
    """Set how GPUs multiply fp32 numbers, in matrix products and convolutions: in fp32 where the settings say so, else
    in TF32. By default, torch uses TF32 for convolutions only."""
    if device.type == "cuda":
        full = settings.precision == "fp32"
        torch.set_float32_matmul_precision("highest" if full else "high")
        torch.backends.cudnn.allow_tf32 = not full


def _recompute(task: Task, module: nn.Module) -> None:
    """Wrap each block that is trained, or that gradients pass through, in activation checkpointing (recomputation)."""
    blocks = {id(block) for block in task.blocks(module)}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in blocks:
                setattr(parent, name, checkpoint_wrapper(child))


def _fsdp(task: Task, module: nn.Module, settings: TrainSettings, ranks: Ranks) -> nn.Module:
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy()
    if settings.precision == "bf16":
        # Inputs are not cast, so that the timesteps and noise of a batch keep all bits. Autocast casts where it is
        # safe.
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in task.blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    empty = any(p.is_meta for p in module.parameters())
    return module.to_empty(device=ranks.device) if empty else module.to(ranks.device)


def _fill(module: nn.Module, task: Task, ranks: Ranks) -> nn.Module:
    """Fill a sharded module with rank 0's weights and buffers (a state dict does not have all buffers)."""
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
    """A context with bf16 autocast where the settings ask for it."""
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        yield


def reduces_once_per_step(module: nn.Module, device: torch.device) -> bool:
    """Whether gradients are reduced over ranks once a step, after its last micro-batch, instead of after each.

    Until they are reduced, FSDP2 holds unsharded gradients: 4 bytes (fp32) a trained parameter on every GPU, besides
    the 16 bytes a parameter that weights, gradients and moments take on all GPUs together. Stage 2 of the 8 B captioner
    takes 29 GiB on each of 8 GPUs (benchmarks/results/sft.md); unsharded gradients are 30 GiB more, which barely fit
    80 GB, and do not fit 48 GB. Reduced after each micro-batch they take no memory, but 30 GiB are sent while it
    computes, which takes about a second. So they are held where they take at most WHOLE_GRADIENTS_SHARE of the memory:
    up to 5 B parameters at 80 GB, 8.8 B at 141 GB.
    """
    if not isinstance(module, FSDPModule) or device.type != gpu.GPU:
        return True
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return 4 * trained <= WHOLE_GRADIENTS_SHARE * gpu.memory(device)


@contextmanager
def gradient_sync(module: nn.Module, last: bool) -> Iterator[None]:
    """A context for one micro-batch. Its gradients, with those of earlier ones, are reduced over ranks if it is the
    last."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def gradient_norm(module: nn.Module, clip: float) -> torch.Tensor:
    """The norm of the gradient over all ranks' shards, float32 scalar, the same on every rank. Where clip > 0,
    gradients are clipped to it in place."""
    trained = [p for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip > 0:
        nn.utils.clip_grads_with_norm_(trained, clip, norm)
    whole: Any = norm
    return whole.full_tensor() if hasattr(whole, "full_tensor") else norm


def to_device(value: Any, device: torch.device) -> Any:
    """A copy of nested lists and dicts with all tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, list):
        return [to_device(v, device) for v in value]
    return value


class AsyncScalar:
    """Numbers that are being copied from the device, float [] or [N]. Reading them waits until they are computed, but
    not for work that was queued later."""

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
    """The device's peak FLOP/s in dense bf16; None where it is not known (CPUs)."""
    if device.type != "cuda":
        return None
    name = gpu.name(device)
    return next((flops for known, flops in PEAKS.items() if known in name), None)
