"""How far metrics agree about captions: Spearman's rank correlation with 95 % bootstrap intervals over images, and the
images that they disagree about.

Equal values share their mean rank. The captions of an image are resampled together, since they depend on one another.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from recap.evaluate.intervals import Mean

RESAMPLES = 1000
MOST_IMAGES = 500  # images whose captions are correlated, chosen by a hash of their name
_AT_ONCE = 100  # resamples that are computed together
_WORDS = re.compile(r"[\w']+")


@dataclass(frozen=True)
class Values:
    """Metrics of captions, where more is better. values: [metrics, captioners, images], NaN where not known."""

    metrics: list[str]
    captioners: list[str]
    images: list[str]
    values: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Rank correlations by pair of metrics; None where one of them has the same value for all.

    captions: over all captions that both metrics have a value for.
    captioners: over the means of three captioners or more.
    images: how many were used.
    """

    captions: dict[tuple[str, str], Mean | None]
    captioners: dict[tuple[str, str], Mean | None]
    images: int


def compute(found: Values, seed: int = 0) -> Agreement:
    """The agreement of every two metrics."""
    chosen = sorted(range(len(found.images)), key=lambda at: hashlib.sha256(found.images[at].encode()).digest())
    values = found.values[:, :, sorted(chosen[:MOST_IMAGES])]
    count = values.shape[2]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) if count else np.zeros((RESAMPLES, 0))
    weights = np.concatenate([np.ones((1, count)), drawn])  # the first row is the sample itself
    parts = [_of_captions(values, weights[at : at + _AT_ONCE]) for at in range(0, len(weights), _AT_ONCE)]
    means = _means(values, weights)
    captions: dict[tuple[str, str], Mean | None] = {}
    captioners: dict[tuple[str, str], Mean | None] = {}
    for one, other in combinations(range(len(found.metrics)), 2):
        pair = (found.metrics[one], found.metrics[other])
        known = int((~np.isnan(values[one]) & ~np.isnan(values[other])).sum())
        captions[pair] = _mean_of(np.concatenate([part[one, other] for part in parts]), known)
        if len(found.captioners) > 2:
            captioners[pair] = _mean_of(_products(_unit(means[one]), _unit(means[other])), len(found.captioners))
    return Agreement(captions, captioners, count)


def _mean_of(drawn: np.ndarray, n: int) -> Mean | None:
    """A mean from its value and those of its resamples. drawn: [1 + resamples], the value first. None where that is
    NaN."""
    rest = drawn[1:][~np.isnan(drawn[1:])]
    if n < 3 or np.isnan(drawn[0]) or not len(rest):
        return None
    low, high = np.percentile(rest, [2.5, 97.5])
    return Mean(float(drawn[0]), float(low), float(high), n)


def _of_captions(values: np.ndarray, weights: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """By pair of metrics: the correlation over captions in each resample, float [resamples]."""
    known = ~np.isnan(values)
    ranked: dict[tuple[int, bytes], np.ndarray] = {}
    found = {}
    for one, other in combinations(range(len(values)), 2):
        both = known[one] & known[other]
        counted = weights[:, np.nonzero(both)[1]]
        units = []
        for metric in (one, other):
            name = (metric, both.tobytes())
            if name not in ranked:
                ranked[name] = _weighted_unit(values[metric][both], counted)
            units.append(ranked[name])
        found[one, other] = _products(*units)
    return found


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Dot products of rows of unit vectors, [resamples]; NaN where a vector is, since all its values are the same."""
    return np.clip(np.einsum("rn,rn->r", one, other), -1, 1)


def _weighted_unit(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks of values, centred and scaled to length 1 in each resample, [resamples, N], so that dot products are
    correlations. weights: how often each value is in each resample.
    """
    if not len(values):
        return np.full((len(weights), 1), np.nan)
    ranks = ranked(values, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks -= (weights * ranks).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
        ranks *= np.sqrt(weights)
        return _normed(ranks)


def ranked(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks from 1, [resamples, N]; equal values share their mean rank."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, place], dtype=np.float64)


def _unit(means: np.ndarray) -> np.ndarray:
    """Ranks of captioners' means [resamples, captioners], centred and scaled to length 1 in each row."""
    means = means.round(9)  # the mean of equal values in another order differs in its last digits
    below = (means[:, :, None] > means[:, None, :]).sum(axis=2)
    equal = (means[:, :, None] == means[:, None, :]).sum(axis=2)
    ranks = np.where(np.isnan(means).any(axis=1, keepdims=True), np.nan, below + (equal + 1) / 2)
    return _normed(ranks - ranks.mean(axis=1, keepdims=True))


def _normed(rows: np.ndarray) -> np.ndarray:
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return np.divide(rows, length, out=np.full_like(rows, np.nan), where=length > 1e-9)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of captioners over images, [metrics, resamples, captioners]."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        sums = np.einsum("ri,mci->mrc", weights, np.nan_to_num(values), optimize=True)
        return np.asarray(sums / np.einsum("ri,mci->mrc", weights, known.astype(float), optimize=True))


# --- images -----------------------------------------------------------------------------------------


def conflict(values: np.ndarray) -> np.ndarray:
    """float [images]: among all pairs of metrics that both rank two captions of the image differently from equal, the
    share that rank them in opposite order; 0 without any. values: [metrics, captioners, images].
    """
    against, ordered = np.zeros(values.shape[2]), np.zeros(values.shape[2])
    for one, other in combinations(range(values.shape[1]), 2):
        sign = np.sign(np.nan_to_num(values[:, one] - values[:, other]))
        more, less = (sign > 0).sum(axis=0), (sign < 0).sum(axis=0)
        against += more * less
        ordered += (more + less) * (more + less - 1) / 2
    return np.divide(against, ordered, out=np.zeros_like(against), where=ordered > 0)


def spread(values: np.ndarray) -> np.ndarray:
    """float [images]: how far apart the image's captions are, 0 to 1, by their ranks among all captions, mean over
    metrics."""
    ranks = np.full(values.shape, np.nan)
    for at, metric in enumerate(values):
        known = ~np.isnan(metric)
        if known.sum() > 1:
            ranks[at][known] = (ranked(metric[known], np.ones((1, known.sum())))[0] - 1) / (known.sum() - 1)
    counted = (~np.isnan(ranks)).sum(axis=1) > 1
    high, low = (np.where(np.isnan(ranks), fill, ranks) for fill in (-np.inf, np.inf))
    apart = np.where(counted, high.max(axis=1, initial=-np.inf) - low.min(axis=1, initial=np.inf), 0.0)
    return apart.sum(axis=0) / np.maximum(counted.sum(axis=0), 1)


def wording(texts: Sequence[str]) -> float:
    """How different texts are, 0 to 1: 1 - the share of words that two have in common, mean over pairs; 0 for one
    text."""
    words = [set(_WORDS.findall(text.lower())) for text in texts]
    found = [1 - len(a & b) / max(len(a | b), 1) for a, b in combinations(words, 2)]
    return sum(found) / len(found) if found else 0.0


def by_disagreement(found: Values, texts: Mapping[str, Sequence[str]]) -> list[tuple[str, float]]:
    """(image, conflict), the largest conflict first. Ties are ordered by how far apart the captions are by metrics,
    then by words.
    """
    conflicts, spreads = conflict(found.values), spread(found.values)
    order = [
        (-round(float(conflicts[at]), 9), -round(float(spreads[at]), 9), -wording(texts[image]), image)
        for at, image in enumerate(found.images)
    ]
    return [(image, -against) for against, _, _, image in sorted(order)]
