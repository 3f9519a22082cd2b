"""The checker and the report of benchmarks.studies.recap_dit."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.studies.recap_dit import HERE, difference, plan, report
from benchmarks.studies.recap_dit_world import ATTRIBUTES, SIDE, STYLES, judge, truth_of


def picture(left: str, right: str, dot: str = "") -> Image.Image:
    """Two halves, and a small square in the middle of the left one."""
    made = Image.new("RGB", (SIDE * 8, SIDE * 8), left)
    made.paste(right, (SIDE * 4, 0, SIDE * 8, SIDE * 8))
    if dot:
        made.paste(dot, (SIDE, SIDE * 3, SIDE * 3, SIDE * 5))
    return made


def judged(drawn: Image.Image, truth: Image.Image) -> list[float]:
    return list(judge(np.asarray(drawn.resize((SIDE, SIDE), Image.Resampling.BOX)), truth_of(truth)).values())


@pytest.mark.parametrize(
    "drawn, right",
    [
        (("red", "blue", "white"), [1, 1, 1]),
        (("blue", "red", "white"), [1, 0, 1]),
        (("red", "yellow", "white"), [0, 0, 1]),
        (("red", "blue", ""), [1, 1, 0]),
        (("red", "red", "white"), [0, 0, 1]),
    ],
)
def test_the_checker(drawn: tuple[str, str, str], right: list[float]) -> None:
    assert judged(picture(*drawn), picture("red", "blue", "white")) == right


def test_nothing_small_is_no_object() -> None:
    assert np.isnan(judged(picture("red", "blue"), picture("red", "blue"))[2])


def test_the_report_tells_a_difference_from_none() -> None:
    """Arms with 30 points between them on scenes, none on names."""
    study = yaml.safe_load((HERE / "recap_dit.yaml").read_text())
    rng, results = np.random.default_rng(0), []
    for arm in plan(study):
        share = {"scenes": 0.4 if arm.p == 0 else 0.1}
        hits = {
            f"{style}@{guidance}": {
                a: (rng.random(300) < share.get(style, 0.3)).astype(float).tolist() for a in ATTRIBUTES
            }
            for style in STYLES
            for guidance in study["sampling"]["guidance"]
        }
        results.append({"arm": arm.name, "seed": arm.seed, "hits": hits, "cpu_s": 60.0})
    told = report(study, results)
    assert [line.rsplit(": ", 1)[1] for line in told.splitlines() if line.startswith("- ")] == ["shown", "not shown"]
    mean, low, high, _ = difference(study["primary"][0], study, results)
    assert low < mean < high and abs(mean - 30) < 6 and "9 arms" in told
