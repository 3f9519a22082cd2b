"""The ranks of a training, and the small messages that they exchange."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from recap import device as gpu


@dataclass
class Ranks:
    """This rank and its process groups. control: gloo, for small messages. saving: gloo, for the checkpoint thread."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup
    saving: dist.ProcessGroup

    def sums(self, values: list[float]) -> list[float]:
        """Sums over all ranks, without waiting for the device. They are rounded only once, so that they do not depend
        on the order of addition."""
        mine = torch.tensor(values, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(found, mine, group=self.control)
        return [math.fsum(column) for column in zip(*(part.tolist() for part in found), strict=True)]

    def largest(self, value: float) -> float:
        """The largest value over all ranks."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.control)
        return max(found)

    def broadcast_from_rank0(self, ask: Callable[[], str]) -> str:
        """The result of `ask` on rank 0, for all ranks. The others do not call it, since it may read all weights."""
        found = [ask() if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=0, group=self.control)
        return str(found[0])

    def tally(self, before: Mapping[str, int], mine: Mapping[str, int]) -> dict[str, int]:
        """Counts by name: those of before, with what each rank adds."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, dict(mine), group=self.control)
        total = Counter(before)
        for part in found:
            total.update(part)
        return dict(sorted(total.items()))


def join(device: str, local_rank: int, timeout_s: float) -> Ranks:
    """Connect to the other ranks (by RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), and choose this rank's device."""
    place, backend = torch.device("cpu"), "gloo"
    if device == gpu.GPU:
        place, backend = gpu.claim(local_rank), "cpu:gloo,cuda:nccl"
        if place.type != gpu.GPU:
            raise RuntimeError("this rank is to work on a GPU, and sees none")
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():  # a later stage in the same process uses the same group
        dist.init_process_group(backend, timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout)
    saving = dist.new_group(backend="gloo", timeout=timeout)
    return Ranks(dist.get_rank(), dist.get_world_size(), place, control, saving)
