"""The study's arithmetic: paired differences, Holm's correction, the plan."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from benchmarks.studies import contrasts
from benchmarks.studies import recap_clip as study

FLAGS, SCENES = (
    yaml.safe_load((Path(study.__file__).parent / name).read_text())
    for name in ("recap_clip.yaml", "recap_clip_scenes.yaml")
)


def result(arm: str, seed: int, values: list[float], registered: dict = FLAGS) -> dict:
    hits = {metric: values for metric in study.world_class(registered).metrics}
    return {
        "arm": arm,
        "seed": seed,
        "codes": ["a", "a", "b", "c"],
        "hits": hits,
        "cut": {"recaption": 0.0, "human": 0.2},
        "cpu_s": 60.0,
    }


@pytest.mark.parametrize("registered", [FLAGS, SCENES])
def test_the_plan_is_what_was_registered(registered: dict) -> None:
    arms = study.plan(registered)
    assert len(arms) == 5 * 5 + 3 * 2 == len({arm.file for arm in arms})
    assert {arm.p for arm in arms if arm.column == "recap"} == {0.0, 0.2, 0.5, 0.8, 1.0}


def test_differences_are_paired_by_seed_and_flag() -> None:
    nan = math.nan
    results = [result("p=1", s, [0.0, 0.0, 0.0, nan]) for s in range(5)]
    results += [result("p=0.5", s, [1.0, 0.0, 1.0, nan]) for s in range(5)]
    primary = {"metric": "human_r5", "better": "p=0.5", "worse": "p=1"}
    mean, low, high, share = study.difference(primary, results)
    assert mean == pytest.approx(75.0)  # flag a 50, flag b 100; c was not asked
    assert low == 50.0 and high == 100.0 and share == 0.0
    same = study.difference({**primary, "worse": "p=0.5"}, results)
    assert same[0] == 0.0 and same[3] == 1.0


def test_holm() -> None:
    assert contrasts.holm([0.01, 0.04]) == pytest.approx([0.02, 0.04])
    assert contrasts.holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])


@pytest.mark.parametrize(("registered", "retrieval"), [(FLAGS, "human_r5"), (SCENES, "paraphrase_r5")])
def test_the_report_holds_every_arm_and_both_verdicts(registered: dict, retrieval: str) -> None:
    results = [result(f"p={p:g}", s, [p, p, p, p], registered) for p in (1.0, 0.8, 0.5, 0.2, 0.0) for s in range(5)]
    text = study.report(registered, results)
    assert "| p=0.8 (5 seeds) | 80.0 (80.0-80.0)" in text and "| shuffled (0 seeds) | - |" in text
    assert f"{retrieval}, p=0.5 - p=1: -50.0 points" in text and "not shown" in text
    assert "names_top1, p=1 - p=0: +100.0 points, 95 % +100.0 to +100.0: shown" in text


def test_metrics_over_training_are_means_over_seeds() -> None:
    looks = [
        [{"samples": n, **dict.fromkeys(study.world_class(SCENES).metrics, n * s)} for n in (1, 2)] for s in (0, 1)
    ]
    results = [{**result("p=0.5", s, [0.0] * 4, SCENES), "learning": looks[s]} for s in (0, 1)]
    assert study.learning(SCENES, results).splitlines()[0] == "names_top1 p=0.5: 50.0 100.0"
