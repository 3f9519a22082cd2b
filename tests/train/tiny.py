"""A small model on made-up data, trained by the real core: what the tests of loop, checkpoints and gangs run on."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from recap.train.settings import TrainSettings

HELD_OUT = 12


@dataclass
class TinyConfig:
    train: TrainSettings = field(default_factory=TrainSettings)
    size: int = 1000  # samples
    width: int = 16
    nan_at: int = -1  # position of a sample that is not a number
    delay_s: float = field(default=0.0, metadata={"execution": True})  # of a step
    hang_at: int = field(default=-1, metadata={"execution": True})  # sample at which rank 1 hangs
    die_at: int = field(default=-1, metadata={"execution": True})  # sample at which rank 1 dies, every time
    reject: int = 0  # every so many samples one is rejected


class TinyTrainer:
    """hpc's seam."""

    Config: ClassVar[type] = TinyConfig
    version: ClassVar[int] = 1

    def __init__(self, config: TinyConfig) -> None:
        self.config = config

    def check(self, ranks: int) -> None:
        from recap.train.settings import check

        check(self.config.train, ranks)

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self, ranks: int) -> list[tuple[str, str]]:
        return [("task", f"tiny, {ranks} ranks")]

    def train(self, gang: Any) -> int:
        from recap.train.loop import train

        return train(make_task(self.config, gang.rank), self.config.train, gang)


def make_module(width: int) -> Any:
    """Three blocks with dropout, a frozen layer, and a loss that is a sum over samples."""
    import torch
    from torch import nn

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            self.frozen = nn.Linear(width, width).requires_grad_(False)
            self.dropout = nn.Dropout(0.1)
            self.last = nn.Linear(width, 1)

        def forward(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
            x = self.frozen(micro["x"])
            for block in self.blocks:
                x = x + self.dropout(torch.tanh(block(x)))
            return (self.last(x).squeeze(-1) - micro["y"]).square().sum()

    return Module()


def make_task(config: TinyConfig, rank: int = 0) -> Any:
    import torch
    from torch import nn

    from recap.randomness import draw, place
    from recap.train.task import Batch

    class Task:
        def module(self) -> nn.Module:
            return make_module(config.width)

        def blocks(self, module: Any) -> Any:
            return list(module.blocks)

        def rate(self, name: str) -> float:
            return 0.1 if "last" in name else 1.0

        def all_used(self) -> bool:
            return True

        def size(self) -> int:
            return config.size

        def identity(self) -> str:
            return hashlib.sha256(str(config.width).encode()).hexdigest()[:8]

        def batch(self, first: int, count: int, rank: int, world: int) -> Batch:
            time.sleep(config.delay_s)
            if rank == 1 and first <= config.hang_at < first + count:
                time.sleep(3600)
            places = [place(config.train.seed, p, config.size) for p in range(first, first + count)]
            mine = [i for _, i in places][rank::world]
            bad = [(f"s{i}", f"odd (number {i})") for i in mine if config.reject and i % config.reject == 0]
            rows = [torch.Generator().manual_seed(draw("x", i) >> 1) for i in mine]
            x = torch.stack([torch.randn(config.width, generator=g) for g in rows])
            if first <= config.nan_at < first + count:
                x[0, 0] = float("nan")
            micro = [{"x": part, "y": part.sum(-1)} for part in x.split(max(1, (len(x) + 1) // 2))]
            keys = [f"s{i}" for _, i in places]
            counts = {"even": float(sum(i % 2 == 0 for i in mine)), "odd": float(sum(i % 2 for i in mine))}
            return Batch(micro, float(len(mine)), len(mine), len(mine), keys, bad, counts)

        def evaluate(self, module: nn.Module, context: Any) -> dict[str, float]:
            """Mean loss of the first `HELD_OUT` positions, each rank its part, in batches of two."""
            ranks, total = context.ranks, 0.0
            torch.rand(7)  # which training must not notice
            for micro in self.batch(0, HELD_OUT, ranks.rank, ranks.world).micro:
                for start in range(0, len(micro["y"]), 2):
                    total += module({name: value[start : start + 2] for name, value in micro.items()}).item()
                    context.between()
            return {"held_out": ranks.sums([total])[0] / HELD_OUT}

        def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(weights, folder / "weights.pt")

    task = Task()
    if rank == 1 and config.die_at >= 0:
        task.batch = dying(task.batch, config.die_at)  # type: ignore[method-assign]
    return task


def dying(batch: Any, at: int) -> Any:
    """The same batches, but kill -9 of this process at that position."""

    def until(first: int, count: int, rank: int, world: int) -> Any:
        if first <= at < first + count:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(first, count, rank, world)

    return until
