"""Evaluation inside the loop: of the averaged weights, each once, and training does not notice it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc.base.errors import UserError
from recap.randomness import place
from recap.train.settings import TrainSettings
from tests.train.ranks import curve, launch, lines, log

TRAIN: dict[str, Any] = {"samples": 144, "batch": 12, "seed": 3, "threads": 1, "ema": 100, "save_every": 60}
EVERY = 48


def run(directory: Path, parallel: str, evaluate_every: int, **gang: Any) -> list[int]:
    train = TRAIN | {"parallel": parallel, "evaluate_every": evaluate_every}
    return launch(directory, 3, {"train": train}, **gang)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return torch.load(directory / "exports/final/weights.pt")


def evaluations(directory: Path) -> list[tuple[int, float]]:
    return [(line["samples"], line["held_out"]) for line in lines(directory) if line.get("kind") == "evaluation"]


def held_out(averaged: dict[str, torch.Tensor]) -> float:
    """The same by one process, from exported weights; the frozen layer is the seed's."""
    from tests.train.tiny import HELD_OUT, TinyConfig, make_task

    task = make_task(TinyConfig(train=TrainSettings(**TRAIN)))
    torch.manual_seed(TRAIN["seed"])
    module = task.module().eval()
    module.load_state_dict(averaged, strict=False)
    return sum(module(micro).item() for micro in task.batch(0, HELD_OUT, 0, 1).micro) / HELD_OUT


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_training_does_not_notice(tmp_path: Path, parallel: str) -> None:
    """Told to stop in the midst of the first evaluation, a rank killed in the second: each is there once, of the
    averaged weights, and loss and weights are bit for bit those without any."""
    without, broken = tmp_path / "without", tmp_path / "broken"
    assert run(without, parallel, 0) == [0] * 3, log(without)
    assert run(broken, parallel, EVERY, stop_at=5) == [75] * 3, log(broken)  # four steps, then between two batches
    assert evaluations(broken) == []
    assert -9 in run(broken, parallel, EVERY, kill_at=7)  # two beats of the first, four steps, one of the second
    assert [samples for samples, _ in evaluations(broken)] == [48]
    assert run(broken, parallel, EVERY) == [0] * 3, log(broken)
    found = evaluations(broken)
    assert [samples for samples, _ in found] == [48, 96, 144]
    assert found[-1][1] == pytest.approx(held_out(weights(broken)), rel=1e-5)
    assert curve(broken) == curve(without)
    one, two = weights(broken), weights(without)
    assert all(torch.equal(one[name], two[name]) for name in two)
    drawn = [place(TRAIN["seed"], position, 1000)[1] for position in range(144)]
    counts = {"even": sum(i % 2 == 0 for i in drawn), "odd": sum(i % 2 for i in drawn)}
    assert [line for line in lines(broken) if "kind" not in line][-1]["counts"] == counts


def test_nothing_to_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recap.train.loop import Training
    from tests.train.test_loop import Single

    with pytest.raises(UserError, match=r"train.evaluate_every.: this trainer has nothing to evaluate"):
        Training(object(), TrainSettings(evaluate_every=12), Single(tmp_path))  # type: ignore[arg-type]
