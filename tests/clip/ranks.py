"""Running a function as several gloo ranks on this machine."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _main(rank: int, world: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...], out: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    result = function(rank, world, *arguments)
    if rank == 0:
        out.put(result)
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(rank, world, *arguments)` on every rank; rank 0's result (plain values or numpy)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    out = context.Queue()
    ranks = [context.Process(target=_main, args=(r, world, port, function, arguments, out)) for r in range(world)]
    for rank in ranks:
        rank.start()
    result = out.get(timeout=240)
    for rank in ranks:
        rank.join(60)
    assert all(rank.exitcode == 0 for rank in ranks)
    return result
