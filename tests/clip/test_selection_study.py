"""The study of selections: its plan, its world and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.studies import selection as study
from recap.data.tars import Sample, read_samples
from recap.worlds import emoji

REGISTERED = yaml.safe_load((study.HERE / "selection.yaml").read_text())


def test_the_plan_is_what_was_registered() -> None:
    arms = study.plan(REGISTERED)
    assert len(arms) == 4 * 3 == len({arm.file for arm in arms})
    assert {arm.name: arm.p for arm in arms} == {"all": 1.0, "random": 0.5, "clip": 0.5, "oracle": 0.5}
    assert {one[side] for one in REGISTERED["primary"] for side in ("better", "worse")} == {"clip", "random", "oracle"}


@pytest.mark.slow
@pytest.mark.skipif(not emoji.FONT.exists(), reason="apt-get install fonts-noto-color-emoji")
def test_half_of_the_pairs_are_wrong_and_the_columns_say_which(tmp_path: Path) -> None:
    small = REGISTERED | {"world": REGISTERED["world"] | {"scenes": 40, "test_scenes": 4}}
    study.build(tmp_path, small)
    with next((tmp_path / "train").glob("*.tar")).open("rb") as file:
        samples = [sample for sample in read_samples(file) if isinstance(sample, Sample)]
    columns = pq.read_table(next((tmp_path / "drawn").glob("*.parquet"))).to_pydict()
    assert columns["key"] == [sample.key for sample in samples]
    for sample, true in zip(samples, columns["oracle"], strict=True):
        scene = emoji.scene_from_json(json.loads(sample.members["json"]))
        assert emoji.judge(sample.members["txt"].decode(), scene)["all"] == bool(true)
    drawn = [columns[f"random-{seed}"] for seed in REGISTERED["arms"]["seeds"]]
    assert [sum(column) for column in (columns["oracle"], *drawn)] == [20.0] * 4
    assert len({tuple(column) for column in drawn}) == 3
    assert study.truth_of(None, tmp_path) == (40, 0.5)


def test_differences_are_paired_by_seed_and_sprite() -> None:
    def result(arm: str, seed: int, hits: list[float]) -> dict:
        return {"arm": arm, "seed": seed, "codes": ["a", "a", "b"], "hits": {"told_r5": hits}}

    results = [result("clip", seed, [1.0, 0.0, 1.0]) for seed in range(3)]
    results += [result("random", seed, [0.0, 0.0, 1.0]) for seed in range(3)]
    primary = {"metric": "told_r5", "better": "clip", "worse": "random"}
    mean, low, high, _ = study.difference(primary, results)
    assert (mean, low, high) == (pytest.approx(25.0), 0.0, 50.0)  # sprite a 50, sprite b 0
