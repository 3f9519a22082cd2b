"""What benchmarks.clip says of its results: the committed ones meet the targets, worse ones are named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clip

FOUND = json.loads((Path(clip.__file__).parent / "results" / "clip.json").read_text())


@pytest.mark.parametrize("part", ["loader", "step", "memory"])
def test_committed_results_meet_the_targets(part: str) -> None:
    assert clip.missed(part, FOUND[part]) == []


@pytest.mark.parametrize(
    ("part", "keys", "value", "target"),
    [
        ("loader", ["images_per_s_per_core", "ratio", "median"], 1.99, "2x open_clip's loader (1.99)"),
        ("step", ["samples_per_s", "ratio", "median"], 0.97, "1.0x open_clip's step (0.97)"),
        ("step", ["device"], "cuda", "1.3x open_clip's step"),
        ("step", ["mfu"], {"ours": 0.39, "theirs": 0.3}, "an MFU of 40 % (39%)"),
        ("memory", ["streamed", "mib"], 7000.0, "less memory streamed than plain"),
    ],
)
def test_a_missed_target_is_named(part: str, keys: list[str], value: Any, target: str) -> None:
    worse = copy.deepcopy(FOUND[part])
    at = worse
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    [said] = clip.missed(part, worse)
    assert said.startswith(target)
