"""A judge's ratings of captions from 1 to 5 (arXiv 2406.08478, section 4): their mean, and how often each was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.text_sets import Sample

RATE = (
    "[Image Caption] {caption}  Rate whether the caption is of high-quality and fluent and correctly matches the given "
    "image. The rating should be 1-5, where 1 is incorrect and not fluent at all, and 5 is correct and very fluent. "
    "Try to just give a numerical rating.  Your response should be in the format: Rating: (int)"
)
"""The paper's words, as in configs/generate/rating.yaml; where their line breaks stood is not known."""
FIELDS = ["rating"]
SCALE = range(1, 6)


@dataclass(frozen=True)
class Rated:
    """counts: by the rating, from 1 to 5."""

    mean: Mean
    counts: dict[int, int]


def of(ratings: Mapping[Sample, int]) -> Rated:
    """Of at least one rating, by the caption's shard and key."""
    given = list(ratings.values())
    return Rated(bootstrap_mean(ratings), {rating: given.count(rating) for rating in SCALE})
