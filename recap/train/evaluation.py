"""Evaluation inside the training loop, of the weights that would be exported. It does not change the training."""

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
    """The ranks agreed to stop during an evaluation. code: the exit code to stop with."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped with {code}")
        self.code = code


def evaluate(task: Evaluates, state: TrainState, settings: TrainSettings, ranks: Ranks, gang: Gang) -> dict[str, Any]:
    """The task's measures of the current weights, or of their moving average where there is one. Raises Interrupted."""

    def between() -> None:
        gang.beat()
        wish = gang.stopping()
        requeue, leave = ranks.sums([float(wish == Exit.REQUEUE), float(wish not in (0, Exit.REQUEUE))])
        if requeue or leave:
            raise Interrupted(Exit.REQUEUE if requeue else Exit.INCOMPLETE)

    context = EvaluationContext(state.progress.samples, Path(gang.directory), ranks, between)
    if state.ema is None:
        return _measured(task, state.module, settings, context)
    with state.ema.swapped():
        return _measured(task, state.module, settings, context)


def _measured(
    task: Evaluates, module: nn.Module, settings: TrainSettings, context: EvaluationContext
) -> dict[str, Any]:
    seed_step(settings.seed, 0, context.ranks.rank)  # the same noise in every evaluation
    module.eval()
    try:
        with torch.no_grad(), precision(settings, context.ranks.device):
            return task.evaluate(module.module if isinstance(module, DistributedDataParallel) else module, context)
    finally:
        module.train()
