"""The study of how metrics rank captioners: its rank correlations, what was registered, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.studies import captioner_ranks as study
from benchmarks.studies import planted_errors
from recap.worlds.shape_errors import PLANTED
from tests.support.jobs import command

REGISTERED = yaml.safe_load(Path(study.__file__).with_suffix(".yaml").read_text())


def test_rank_correlations_by_hand() -> None:
    """Ranks (1, 2.5, 2.5, 4) and (1, 3, 2, 4); five of six pairs are in the same order, one is a tie of one side. Where
    one side says the same of all, or nothing of one, there is none.
    """
    spearman, kendall = study.rank_correlations(np.array([[1.0, 2, 2, 4]]), np.array([[1.0, 3, 2, 4]]))
    assert (spearman[0], kendall[0]) == pytest.approx((4.5 / math.sqrt(4.5 * 5), 5 / math.sqrt(5 * 6)))
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 4, (20, 9)).astype(float), rng.integers(0, 5, (20, 9)).astype(float)
    found, turned = study.rank_correlations(one, other), study.rank_correlations(one, -other)
    assert found[0] == pytest.approx(
        [planted_errors.spearman(list(a), list(b)) for a, b in zip(one, other, strict=True)]
    )
    assert turned[0] == pytest.approx(-found[0]) and turned[1] == pytest.approx(-found[1])
    same, lacks = np.ones((1, 3)), np.array([[1.0, math.nan, 2.0]])
    assert all(math.isnan(found[0]) for made in (same, lacks) for found in study.rank_correlations(one[:1, :3], made))


def test_captioners_without_a_value_are_left_out() -> None:
    """The third says nothing that the metric could count; one without values of captions is ranked by its numbers."""
    known = np.array([[3.0, 3.0, 3.0], [2.0, 2.0, 2.0], [9.0, 9.0, 9.0], [1.0, 1.0, 1.0]])
    each = np.array([[0.9, math.nan, 0.8], [0.5, 0.6, 0.7], [math.nan] * 3, [0.1, 0.2, math.nan]])
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    found = study.agreement(known, each, np.array([0.85, 0.6, math.nan, 0.15]), weights)
    assert (found.spearman, found.kendall, found.n) == pytest.approx((1.0, 1.0, 3))
    assert found.bounds == ((1.0, 1.0), (1.0, 1.0))  # the resample without a value of the first is none
    alone = study.agreement(known, np.full_like(each, math.nan), np.array([1.0, 2.0, math.nan, 3.0]), weights)
    assert (alone.spearman, alone.n, alone.bounds) == (-1.0, 3, None)
    constant = study.agreement(known, np.ones_like(each), np.ones(4), weights)
    assert math.isnan(constant.spearman) and constant.bounds is None


def test_what_was_registered_can_be_told() -> None:
    """Every expectation is of a column and metrics that there are; a checkpoint is kept for each that is asked for."""
    metrics = {*REGISTERED["worse"]["lower"], *REGISTERED["worse"]["higher"]}
    columns = {study.TRAINING, study.BY_FACTS, study.BY_WHOLE, *PLANTED}
    for column, names, least, most in REGISTERED["expected"]:
        assert column in columns and set(names) <= metrics and -1 <= least < most <= 1
    train = REGISTERED["training"]["train"]
    assert [samples / train["samples"] for samples in REGISTERED["checkpoints"]] == [0.1, 0.3, 1.0]
    assert not any(samples % train["save_every"] for samples in REGISTERED["checkpoints"])
    assert train["keep"] * train["save_every"] >= train["samples"]


def test_the_report_tells_what_was_expected_and_what_was_not() -> None:
    def one(spearman: float, n: int = 4) -> dict[str, Any]:
        return {"spearman": spearman, "kendall": spearman, "captioners": n, "bounds": ((0.5, 1.0), (0.4, 1.0))}

    told: dict[str, Any] = {"worse": {"lower": ["CIDEr-D", "rating"], "higher": ["OpenCHAIR"]}}
    told["expected"] = [["wrong count", ["CIDEr-D", "rating"], 0.9, 1.0], ["wrong count", ["OpenCHAIR"], -1.0, 0.85]]
    metrics = {"CIDEr-D": one(1.0), "rating": one(0.4), "OpenCHAIR": one(math.nan, 3)}
    truth = {"right": {"facts": 1.0, "whole": 1.0}}
    seeds = [{"seed": seed, "truth": truth, "agreement": {"wrong count": metrics}} for seed in (1, 2)]
    lines = list(study.report(told, seeds))
    assert "| CIDEr-D | 1.00 (0.50 to 1.00) |" in lines and "| OpenCHAIR | same of all |" in lines
    assert "| 0.9 to 1 | wrong count | CIDEr-D | rating (0.40, 0.40) |" in lines
    assert "| -1 to 0.85 | wrong count | OpenCHAIR | - |" in lines


@pytest.mark.slow  # a training, three exports, and every metric of 26 captioners
def test_the_command_trains_measures_and_reports(tmp_path: Path) -> None:
    small = REGISTERED | {"seeds": [3], "scenes": 6, "checkpoints": [16, 32]}
    small["training"] = {**small["training"], "train": {**small["training"]["train"], "samples": 32, "save_every": 16}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    asked = [str(tmp_path / "out"), "--study", str(tmp_path / "small.yaml"), "--json", str(tmp_path / "found.json")]
    done = command("benchmarks.studies.captioner_ranks", *asked, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (seed,) = json.loads((tmp_path / "found.json").read_text())["seeds"]
    assert [name for name in seed["truth"]][:4] == ["shipped", "50%", "100%", "right"]
    assert seed["truth"]["right"] == {"facts": 1.0, "whole": 1.0} and seed["truth"]["shipped"]["whole"] == 0.0
    assert len(seed["truth"]) == 4 + 3 * len(PLANTED) and seed["agreement"]["length"]["CIDEr-D"]["spearman"] == 1.0
    assert "| DCScore |" in done.stdout and "CPU-minutes" in done.stdout
    captions = json.loads((tmp_path / "out" / "captions-3.json").read_text())
    assert set(captions) == {"shipped", "50%", "100%"} and all(len(said) == 6 for said in captions.values())
