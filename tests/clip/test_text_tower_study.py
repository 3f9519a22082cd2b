"""The study of text towers: its plan, its equal costs, its world's texts and its arithmetic."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import yaml

from benchmarks.studies import text_tower as study
from recap.worlds import emoji

REGISTERED = yaml.safe_load((study.HERE / "text_tower.yaml").read_text())


def test_the_plan_is_what_was_registered_and_every_training_costs_the_same() -> None:
    arms = study.plan(REGISTERED)
    assert len(arms) == 2 * 2 * 5 == len({arm.file for arm in arms})
    assert set(study.SIGNS["gain of large - gain of small"]) == {arm.name for arm in arms}
    assert {arm.name: arm.p for arm in arms} == {
        "small-raw": 1.0, "small-mixed": 0.2, "large-raw": 1.0, "large-mixed": 0.2,
    }  # fmt: skip
    costs, samples = [], {}
    for tower, shape in REGISTERED["arms"]["towers"].items():
        sized = study.at_equal_flops(REGISTERED, tower)
        samples[tower] = sized["training"]["samples"]
        assert samples[tower] % sized["training"]["batch"] == 0 and sized["model"]["text"] == shape
        costs.append(samples[tower] * study.pair_cost(REGISTERED, shape))
    assert samples["large"] == REGISTERED["samples"] < samples["small"]
    assert costs[0] == pytest.approx(costs[1], rel=0.01)


def test_recaptions_are_true_but_for_the_share_of_errors() -> None:
    right: Counter[bool] = Counter()
    named: Counter[bool] = Counter()
    for number in range(400):
        rng = random.Random(f"drawn/{number}")
        scene = emoji.new_scene(rng)
        told = study.recaption(scene, emoji.describe(scene), 0.1, rng)
        verdict = emoji.judge(told, scene)
        assert verdict["background"]
        right[verdict["all"]] += 1
        shown = {sprite.name for sprite in scene.sprites}
        named[bool(shown & set(emoji.alt_text(scene, rng, study.PLAIN).split()))] += 1
    assert 20 <= right[False] <= 60 and 200 <= named[True] <= 280  # of 400: a tenth, and six tenths


def test_the_primary_is_a_difference_of_gains_paired_by_seed_and_sprite() -> None:
    def result(arm: str, seed: int, hits: list[float]) -> dict:
        return {"arm": arm, "seed": seed, "codes": ["a", "a", "b"], "hits": {"told_r5": hits}}

    made = {"large-mixed": [1, 1, 1], "large-raw": [0, 0, 1], "small-mixed": [1, 0, 1], "small-raw": [0, 0, 1]}
    results = [result(arm, seed, [float(hit) for hit in hits]) for arm, hits in made.items() for seed in (0, 1)]
    results.append(result("large-mixed", 2, [0.0, 0.0, 0.0]))  # a seed without its other arms counts for nothing
    found = {what: study.difference(signs, "told_r5", results) for what, signs in study.SIGNS.items()}
    means = {what: one[0] for what, one in found.items() if one}
    assert means == pytest.approx({
        "gain of large - gain of small": 25, "gain of large": 50, "gain of small": 25, "large - small, mixed": 25,
        "large - small, raw": 0,
    })  # fmt: skip
    assert study.difference(study.SIGNS["gain of large"], "told_r5", results[:2]) is None
