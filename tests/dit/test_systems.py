"""RECAP (arXiv 2310.16656) from its config: weights to go on from, short and long captions half and half."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from hpc import config as configs
from hpc.pipeline import definition as pipeline
from recap.dit.task import DitTask
from tests.dit.conftest import tree
from tests.support.jobs import ROOT
from tests.train.ranks import curve, launch, log

RECAP = ROOT / "configs/systems/recap_t2i.yaml"


@pytest.fixture(scope="module")
def columns(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """short and long: two texts of every image."""
    folder = tmp_path_factory.mktemp("captions")
    for file in sorted((world / "recap").glob("*.parquet")):
        long = pq.read_table(file)
        short = [" ".join(text.split()[:4]) for text in long["caption"].to_pylist()]
        made = long.append_column("short", [short])
        pq.write_table(made, folder / file.name, row_group_size=512)
    return {name: {"folder": str(folder), "field": field} for name, field in (("short", "short"), ("long", "caption"))}


def fine_tuning(world: Path, columns: dict[str, Any], start: str) -> dict[str, Any]:
    """The pipeline's own text policy and rate on a tiny model."""
    stages = pipeline.load(RECAP, ["cluster=local"]).stages
    found = stages["dit"].config
    assert found is not None and stages["dit"].needs == ("short", "long")
    given = found.resolved
    assert given["model"]["start"] and given["data"]["latents"] is None
    assert set(given["data"]["columns"]) == set(columns)
    made = tree(world, model__start=start, text=given["text"], data__columns=columns, train__lr=given["train"]["lr"])
    made["objective"] = given["objective"] | {"kind": "flow", "min_snr": 0.0}
    return made


def test_short_and_long_captions_are_seen_half_and_half(world: Path, columns: dict[str, Any]) -> None:
    config = configs.check(json.loads(json.dumps(fine_tuning(world, columns, ""))), "test").work
    task = DitTask(config, None)
    drawn = Counter(r.value.column for r in task.samples.take(0, 600))
    assert set(drawn) == {"short", "long"} and abs(drawn["short"] - 300) < 3 * (600 / 4) ** 0.5


@pytest.mark.slow
def test_it_goes_on_from_the_weights(world: Path, tmp_path: Path, columns: dict[str, Any]) -> None:
    """After a training on alt-texts, the fine-tuning's first loss is that model's, and its weights move."""
    base = tree(world, text__weights={"org_caption": 1.0})
    assert launch(tmp_path / "base", 1, base, module="tests.sft.ranks") == [0], log(tmp_path / "base")
    start = tmp_path / "base/exports/final/transformer"
    made = fine_tuning(world, columns, str(start))
    assert launch(tmp_path / "tuned", 1, made, module="tests.sft.ranks") == [0], log(tmp_path / "tuned")
    fresh, tuned = (curve(tmp_path / name)[0][1] for name in ("base", "tuned"))
    assert tuned < fresh - 0.1
    name = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / name) for folder in (start, tmp_path / "tuned/exports/final/transformer"))
    assert before.keys() == after.keys() and any(not before[key].equal(after[key]) for key in before)
