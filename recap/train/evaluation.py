"""Evaluation inside the loop: of the weights that would be exported, without a trace in the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpc.base.errors import Exit
from hpc.trainer import Gang
from recap.train.parallel import precision
from recap.train.ranks import Ranks
from recap.train.settings import TrainSettings
from recap.train.state import TrainState, seed_step
from recap.train.task import Evaluates, EvaluationContext


class Interrupted(Exception):
    """The ranks agreed to stop in the midst of an evaluation, with `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with {code}")
        self.code = code


def evaluate(task: Evaluates, state: TrainState, settings: TrainSettings, ranks: Ranks, gang: Gang) -> dict[str, Any]:
    """What the task measures of the present weights, or of their average where there is one. Raises Interrupted."""

    def between() -> None:
        gang.beat()
        wish = gang.stopping()
        requeue, leave = ranks.sums([float(wish == Exit.REQUEUE), float(wish not in (0, Exit.REQUEUE))])
        if requeue or leave:
            raise Interrupted(Exit.REQUEUE if requeue else Exit.INCOMPLETE)

    occasion = EvaluationContext(state.progress.samples, Path(gang.directory), ranks, between)
    if state.ema is None:
        return _measured(task, state.module, settings, occasion)
    with state.ema.swapped():
        return _measured(task, state.module, settings, occasion)


def _measured(
    task: Evaluates, module: nn.Module, settings: TrainSettings, occasion: EvaluationContext
) -> dict[str, Any]:
    seed_step(settings.seed, 0, occasion.ranks.rank)  # the same noise each time; the next step seeds its own
    module.eval()
    try:
        with torch.no_grad(), precision(settings, occasion.ranks.device):
            return task.evaluate(module.module if isinstance(module, DistributedDataParallel) else module, occasion)
    finally:
        module.train()
