"""The mean of a judge's ratings of captions, 1 to 5, and how often each was given (arXiv 2406.08478, section 4)."""

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
"""The paper's prompt, as in configs/generate/rating.yaml. Where its line breaks are is not known."""
FIELDS = ["rating"]
SCALE = range(1, 6)


@dataclass(frozen=True)
class Rated:
    """counts: how often each rating was given, by rating from 1 to 5."""

    mean: Mean
    counts: dict[int, int]


def compute(ratings: Mapping[Sample, int]) -> Rated:
    """The mean and counts of at least one rating. ratings: by shard and key of the caption."""
    given = list(ratings.values())
    return Rated(bootstrap_mean(ratings), {rating: given.count(rating) for rating in SCALE})
