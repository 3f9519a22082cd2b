"""Rates over a grid, as engines have them: one peak along each axis, and a line behind which memory runs out."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

Point = tuple[int, ...]
BEST = 25.0  # requests a second at the peak: a busy machine of one CPU serves so many


def _quadratic(apart: float, width: float) -> float:
    return math.exp(-((apart / width) ** 2))


def _tent(apart: float, width: float) -> float:
    return max(0.02, 1 - 0.5 * abs(apart) / width)


def _saturating(apart: float, width: float) -> float:
    """A steep rise, then a slow decline."""
    return math.exp(1.5 * apart / width) if apart < 0 else math.exp(-0.3 * apart / width)


def _spike(apart: float, width: float) -> float:
    return 1.0 if abs(apart) < 0.1 else 0.85 - 0.4 * abs(apart)


_ALONE: dict[str, Callable[[float, float], float]] = {
    "quadratic": _quadratic, "tent": _tent, "saturating": _saturating, "spike": _spike
}  # fmt: skip
SHAPES = (*_ALONE, "ridge")


def surface(shape: str, seed: int, sizes: Point) -> dict[Point, float | None]:
    """The rate at every point, None where memory runs out. In a ridge an axis' peak moves with the other axes."""
    draw = random.Random(f"{shape} {seed} {sizes}")
    peaks = [draw.uniform(0.1, 0.9) for _ in sizes]
    if shape == "spike":  # on a point of the grid
        peaks = [round(peak * (size - 1)) / max(1, size - 1) for peak, size in zip(peaks, sizes, strict=True)]
    widths, lean = [draw.uniform(0.5, 1.0) for _ in sizes], draw.uniform(-0.4, 0.4)
    weights = [draw.uniform(0.3, 1.0) for _ in sizes]
    found: dict[Point, float | None] = {}
    points = list(itertools.product(*map(range, sizes)))
    places = {point: [at / max(1, size - 1) for at, size in zip(point, sizes, strict=True)] for point in points}
    memory = {point: sum(w * x for w, x in zip(weights, places[point], strict=True)) for point in points}
    limit = sorted(memory.values())[int(draw.uniform(0.6, 0.95) * (len(points) - 1))]
    for point in points:
        apart = [x - peak for x, peak in zip(places[point], peaks, strict=True)]
        if shape == "ridge":
            apart = [a - lean * (sum(apart) - a) / max(1, len(sizes) - 1) for a in apart]
        each = _ALONE.get(shape, _quadratic)
        rate = BEST * math.prod(each(a, width) for a, width in zip(apart, widths, strict=True))
        found[point] = rate if memory[point] <= limit else None
    return found
