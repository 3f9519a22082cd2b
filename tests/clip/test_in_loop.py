"""Evaluation inside a CLIP training: what one process finds of the finished model, and not a bit else changes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from hpc.base.errors import UserError
from recap.clip.encoder import Encoder
from recap.clip.evaluate import measure
from recap.clip.settings import EvaluationConfig
from recap.worlds.tars import write_tar
from tests.clip.test_training import run, trainer, tree
from tests.clip.world import sample, write_world
from tests.train.ranks import curve, lines, log


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, shards=1)
    rng = random.Random("held out")
    made = [sample(rng) for _ in range(33)]  # two ranks' parts in batches of 16: two batches and one
    members = [(f"{i:03d}", {"png": m[0], "txt": m[2].encode(), "cls": b"%d" % (i % 4)}) for i, m in enumerate(made)]
    with (folder / "held_out.tar").open("wb") as file:
        write_tar(file, members)
    (folder / "classes.txt").write_text("red\ngreen\nblue\nwhite\n")
    return folder


def evaluations(world: Path) -> dict[str, dict[str, Any]]:
    tar = {"shards": [str(world / "held_out.tar")], "batch": 16}
    return {"pairs": tar, "colours": {**tar, "task": "classify", "classes": str(world / "classes.txt")}}


@pytest.mark.slow
def test_equals_one_process_and_leaves_no_trace(world: Path, tmp_path: Path) -> None:
    """Sharded by FSDP2, whose ranks must call the module equally often."""
    config = tree(world, stages=[{"image": 16, "samples": 192, "base_lr": 2e-2, "warmup": 0}])
    config["train"] |= {"parallel": "fsdp", "ema": 100}
    assert run(tmp_path / "without", 2, config) == [0, 0], log(tmp_path / "without")
    config["train"]["evaluate_every"] = 96
    config["evaluate"] = evaluations(world)
    assert run(tmp_path / "with", 2, config) == [0, 0], log(tmp_path / "with")
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    exports = [tmp_path / name / "exports/final/open_clip_model.safetensors" for name in ("with", "without")]
    assert exports[0].read_bytes() == exports[1].read_bytes()

    found = [line for line in lines(tmp_path / "with") if line.get("kind") == "evaluation"]
    assert [line["samples"] for line in found] == [96, 192]
    encoder = Encoder(tmp_path / "with/exports/final")
    for name, values in evaluations(world).items():
        for metric, value in measure(encoder, EvaluationConfig(**values)).items():
            assert found[-1][f"{name}/{metric}"] == pytest.approx(value, abs=1e-12), metric
    assert found[0] != found[1] and found[-1]["pairs/t2i_r10"] > 0
    drawn = [line for line in lines(tmp_path / "with") if "kind" not in line][-1]["counts"]
    assert sum(drawn.values()) == 192 and 70 < drawn["text/org_caption"] < 122  # p = 0.5: 96, 6.9


@pytest.mark.parametrize(
    ("change", "every", "word"),
    [
        ({}, 0, r"train.evaluate_every.*go together"),
        ({"task": "guess"}, 96, r"`evaluate.pairs`: task 'guess' is unknown"),
        ({"shards": []}, 96, "retrieve wants karpathy, folder or shards"),
        ({"task": "classify"}, 96, "classify wants shards and classes"),
        ({"karpathy": "/nowhere.json"}, 96, "/nowhere.json does not exist"),
    ],
)
def test_refused(world: Path, change: dict[str, Any], every: int, word: str) -> None:
    config = tree(world, train__evaluate_every=every, evaluate={"pairs": evaluations(world)["pairs"] | change})
    with pytest.raises(UserError, match=word):
        trainer(config).check(2)
