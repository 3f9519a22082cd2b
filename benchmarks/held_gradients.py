"""Gradients under FSDP2 with several micro-batches a step: held whole until the last, or summed over ranks in each.

What `recap.train.parallel.reduces_once_per_step` chooses between, measured on two gloo ranks of this machine: the bytes
that a rank sends and holds do not depend on the device, the seconds do (here both ranks share the cores).
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from recap.train.parallel import gradient_sync

RANKS, MICRO_BATCHES, WIDTH, LAYERS = 2, 4, 512, 8
WAYS = {"held": True, "summed in each": False}


class Sent(TorchDispatchMode):
    """bytes: of the gradients that this rank gave to be summed."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "reduce_scatter" in str(func):
            self.bytes += args[1].nbytes
        return func(*args, **(kwargs or {}))


def gradients() -> dict[str, float]:
    """MiB a rank sends, and holds whole between two micro-batches, and seconds of a step; each way."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(port, out), nprocs=RANKS)
    return out.get()


def _rank(rank: int, port: int, out: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    for layer in module:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    found: dict[str, float] = {}
    for name, once in WAYS.items():
        step(module, once)
        seconds, sent, held = min(step(module, once) for _ in range(3))
        found[f"gradients sent MiB a step, {name}"] = sent / 2**20
        found[f"gradients held MiB, {name}"] = held / 2**20
        found[f"gradients s a step, {name}"] = seconds
    if rank == 0:
        out.put(found)
    dist.barrier()
    dist.destroy_process_group()


def step(module: nn.Module, once: bool) -> tuple[float, int, int]:
    """One training step, whose gradients are dropped.

    Args:
        once: gradients are kept whole until the last micro-batch, and summed over the ranks there.

    Returns:
        Seconds, bytes sent, and the most bytes of whole gradients held between micro-batches.
    """
    held, batch, start = 0, torch.randn(8, WIDTH), time.perf_counter()
    with Sent() as sent:
        for number in range(MICRO_BATCHES):
            last = number == MICRO_BATCHES - 1
            with gradient_sync(module, last or not once):
                module(batch).square().mean().backward()
            held = max(held, 0 if last else whole(module))
    seconds = time.perf_counter() - start
    module.zero_grad(set_to_none=True)
    return seconds, sent.bytes, held


def whole(module: nn.Module) -> int:
    """Bytes of gradients that FSDP2 holds unsharded."""
    states: list[Any] = [m._get_fsdp_state() for m in module.modules() if isinstance(m, FSDPModule)]
    groups = [state._fsdp_param_group for state in states if state._fsdp_param_group]
    parameters = [p for group in groups for p in group.fsdp_params]
    grads = [p.unsharded_accumulated_grad for p in parameters]
    grads += [p._unsharded_param.grad for p in parameters if hasattr(p, "_unsharded_param")]  # gathered at first use
    return sum(grad.nbytes for grad in grads if grad is not None)
