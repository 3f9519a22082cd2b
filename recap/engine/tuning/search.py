"""Which point of a grid to measure next: a few measurements find the best of many points.

Successive search with a model: rates of points are taken for a smooth function of the axes (a Gaussian process over
their logarithms, a sum over the axes and a product, Matérn 5/2), and the point with the largest expected improvement
is measured next (Jones, Schonlau and Welch 1998). Two facts of engines make it quick. Along an ordered axis a rate has
one peak, so that nothing behind a decline is looked at. And memory runs out behind a line: failures tell on which side
of it a point lies, by the ends of memory (a limit of a sum over the axes, or of each axis) that are consistent with
what failed and what did not.

numpy alone; nothing here is random: the same measurements give the same next point.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, ...]  # the position on each axis
Floats = NDArray[np.float64]

NOISE = 0.03  # relative error of a rate: a decline by less is none
_WIDTHS = (0.15, 0.25, 0.4, 0.6, 0.9)  # of the process, in lengths of an axis: the likeliest is taken
_TOGETHER = 0.25  # variance of what axes do together, against that of each alone
_PRIOR_SD = 0.6  # of the logarithm of rates, worth two measurements
_FAR = 10.0  # times under the best, below which it does not matter by how much
_ENDS = 1500  # of each kind that are tried as the end of memory
_OF_EACH = 0.075  # weight of ends of each axis against those of sums: memory is mostly a sum of parts
_SOFT = 0.03  # of an axis, by which one may be wrong


@dataclass(frozen=True)
class Axes:
    """The grid. sizes: values of each axis; ordered: whether their order means something (numbers), else all values are
    equally far from one another.
    """

    sizes: tuple[int, ...]
    ordered: tuple[bool, ...]

    def points(self) -> list[Point]:
        return list(itertools.product(*map(range, self.sizes)))


def next_point(
    axes: Axes, known: Mapping[Point, float | None], leave: Sequence[Point] = (), start: Point = ()
) -> Point:
    """The point to measure next.

    Args:
        known: rates that were measured; None where a point failed.
        leave: points that are not to be chosen: refused ones, those that others measure now.
        start: the first point; empty: the middle of the grid.

    Raises:
        LookupError: no point is left.
    """
    out = set(leave)
    left = [point for point in axes.points() if point not in known and point not in out]
    if not left:
        raise LookupError("every point is measured")
    left = [point for point in left if not _behind_a_decline(axes, point, known)] or left
    good = [point for point, rate in known.items() if rate]
    bad = [point for point, rate in known.items() if not rate]
    if not known:
        middle = start or tuple((size - 1) // 2 for size in axes.sizes)
        return min(left, key=lambda point: _steps(axes, point, middle))
    fits = _fitting(_places(axes, left), _places(axes, good), _places(axes, bad))
    if not good:  # away from what failed
        away = [min(_steps(axes, point, other) for other in bad) for point in left]
        return left[int(np.argmax(fits * np.array(away)))]
    return left[int(np.argmax(_improvement(axes, left, {point: known[point] or 0.0 for point in good}) * fits))]


def _steps(axes: Axes, one: Point, other: Point) -> float:
    """Squared distance, each axis one long."""
    return sum(
        ((a - b) / max(1, size - 1)) ** 2 if ordered else float(a != b)
        for a, b, size, ordered in zip(one, other, axes.sizes, axes.ordered, strict=True)
    )


def _behind_a_decline(axes: Axes, point: Point, known: Mapping[Point, float | None]) -> bool:
    """Whether the rates along an axis fall towards the point: then it is no better than the nearest of them."""
    for axis, ordered in enumerate(axes.ordered):
        if not ordered:
            continue
        line = {
            other[axis] - point[axis]: rate or 0.0
            for other, rate in known.items()
            if other[:axis] + other[axis + 1 :] == point[:axis] + point[axis + 1 :]
        }
        for side in (1, -1):
            rates = [line[step] for step in sorted(line, key=abs) if step * side > 0]
            if any(near < (1 - NOISE) * max(rates[at + 1 :], default=0.0) for at, near in enumerate(rates)):
                return True
    return False


def _places(axes: Axes, points: Sequence[Point]) -> Floats:
    """[points, coordinates]: ordered axes from 0 to 1; of others one for each value."""
    columns: list[list[float]] = []
    for axis, (size, ordered) in enumerate(zip(axes.sizes, axes.ordered, strict=True)):
        if ordered:
            columns.append([point[axis] / max(1, size - 1) for point in points])
        else:
            columns += [[float(point[axis] == value) for point in points] for value in range(size)]
    return np.array(columns, dtype=np.float64).reshape(len(columns), len(points)).T


def _fitting(left: Floats, good: Floats, bad: Floats) -> Floats:
    """[points] the probability that each does not fail, over ends of memory that part the good from the bad."""
    if not len(bad):
        return np.ones(len(left))
    first_bad = _memory(bad).min(1)
    last_good = _memory(good).max(1) if len(good) else first_bad - 1.0
    weights = np.repeat([1.0 - _OF_EACH, _OF_EACH], _ENDS) * np.exp(-np.maximum(last_good - first_bad, 0.0) / _SOFT)
    gap = np.maximum(first_bad - last_good, 1e-9)
    inside = np.clip((first_bad[:, None] - _memory(left)) / gap[:, None], 0.0, 1.0)
    found: Floats = weights @ inside / weights.sum()
    return found


def _memory(places: Floats) -> Floats:
    """[ends, points] what each point takes, by many ways in which it may: a sum over the axes, and their largest."""
    # More of a number more often takes more memory than less.
    ways = np.random.default_rng(0).normal(0.5, 1.0, (_ENDS, places.shape[1]))
    added = (ways / np.abs(ways).sum(1, keepdims=True)) @ places.T
    ways /= np.abs(ways).max(1, keepdims=True)
    largest = np.zeros_like(added)
    for way, column in zip(ways.T, places.T, strict=True):
        np.maximum(largest, np.where(way[:, None] > 0, way[:, None] * column, way[:, None] * (column - 1)), out=largest)
    return np.concatenate([added, largest])


def _improvement(axes: Axes, left: Sequence[Point], rates: Mapping[Point, float]) -> Floats:
    """[points] by how much each is expected to exceed the best rate, in its logarithm."""
    logs = np.log(np.array(list(rates.values())))
    logs = np.maximum(logs, logs.max() - math.log(_FAR))
    measured = list(rates)
    fits = []
    for width in _WIDTHS:
        inverse = np.linalg.inv(_alike(axes, measured, measured, width) + NOISE**2 * np.eye(len(measured)))
        mean = float(inverse.sum(0) @ logs / inverse.sum())
        off = logs - mean
        variance = (off @ inverse @ off + 2 * _PRIOR_SD**2) / (len(off) + 2)
        likely = 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * len(off) * math.log(variance)
        fits.append((likely, width, inverse, mean, variance))
    _, width, inverse, mean, variance = max(fits, key=lambda fit: fit[0])
    near = _alike(axes, left, measured, width)
    expected = mean + near @ inverse @ (logs - mean)
    unsure = 1.0 - np.einsum("ij,jk,ik->i", near, inverse, near)
    spread = np.sqrt(variance * np.maximum(unsure, 1e-9))
    more = expected - logs.max()
    z = more / spread
    below = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in z])
    found: Floats = more * below + spread * np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return found


def _alike(axes: Axes, ones: Sequence[Point], others: Sequence[Point], width: float) -> Floats:
    """[ones, others] the process' covariance, 1 for equal points."""
    alone, together = np.zeros((len(ones), len(others))), np.ones((len(ones), len(others)))
    for axis, (size, ordered) in enumerate(zip(axes.sizes, axes.ordered, strict=True)):
        a, b = (np.array([point[axis] for point in points])[:, None] for points in (ones, others))
        apart = math.sqrt(5) / width * (np.abs(a - b.T) / max(1, size - 1) if ordered else (a != b.T))
        each = (1 + apart + apart**2 / 3) * np.exp(-apart)
        alone, together = alone + each, together * each
    found: Floats = (alone + _TOGETHER * together) / (len(axes.sizes) + _TOGETHER)
    return found
