"""Which trials a tuning does: few of a grid's points, and the best among them; and the words for those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from recap.engine.tuning.failures import CRASHED, NEVER_HEALTHY, OUT_OF_MEMORY, REFUSED, classify
from recap.engine.tuning.search import Axes, Point, next_point
from tests.support.surfaces import SHAPES, surface

TRIALS = 12
GRIDS = [(10, 6), (5, 4, 3), (3, 20), (60,), (2, 2, 3, 5)]


def tuned(rates: dict[Point, float | None], axes: Axes) -> dict[Point, float | None]:
    known: dict[Point, float | None] = {}
    while len(known) < min(TRIALS, len(rates)):
        point = next_point(axes, known)
        assert point not in known
        known[point] = rates[point]
    return known


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_within_five_percent_in_twelve_trials(shape: str, sizes: Point) -> None:
    for seed in range(2):
        rates = surface(shape, seed, sizes)
        known = tuned(rates, Axes(sizes, (True,) * len(sizes)))
        best = max(rate for rate in rates.values() if rate)
        assert max(rate or 0 for rate in known.values()) >= 0.95 * best, (seed, known)


def test_each_axis_may_have_its_own_end_of_memory() -> None:
    """As where five slots fit and three rows a pass, whatever the other is: sums of both alone would not find it."""
    axes = Axes((10, 6), (True, True))
    rates: dict[Point, float | None] = {
        (a, b): 60 / (1 + ((a - 1) / 4) ** 2) / (1 + ((b - 2) / 2) ** 2) if a <= 4 and b <= 2 else None
        for a, b in axes.points()
    }
    assert tuned(rates, axes)[1, 2] == 60.0


def test_order_means_nothing_on_some_axes_and_some_points_are_left() -> None:
    """Backends have no order; refused points, and those that others measure, are not chosen."""
    axes = Axes((4, 3), (False, True))
    rates = {point: 10.0 + 5 * (point == (3, 1)) + point[1] for point in axes.points()}
    leave = [(0, 0), (1, 2)]
    known: dict[Point, float | None] = {}
    for _ in range(10):
        point = next_point(axes, known, leave, start=(2, 2))
        assert point not in leave and (known or point == (2, 2))
        known[point] = rates[point]
    with pytest.raises(LookupError):
        next_point(axes, known, leave)
    failed: dict[Point, float | None] = {(2, 2): None}
    assert next_point(axes, failed, leave) not in (*failed, *leave)


@pytest.mark.parametrize(
    "kind, problem, code, log, found",
    [
        ("", "it exited", 1, "RuntimeError: CUDA error: out of memory", OUT_OF_MEMORY),
        ("", "OutOfMemoryError: CUDA out of memory. Tried to allocate", None, "", OUT_OF_MEMORY),
        ("", "signal 9: Killed", 137, "", OUT_OF_MEMORY),
        ("refused", "UserError: captioner.server: it ended with 1 before it was healthy.", None,
         "ValueError: No available memory for the cache blocks.", OUT_OF_MEMORY),
        ("refused", "UserError: captioner.server: http://127.0.0.1:1 was not healthy within captioner", None,
         "set max_num_seqs lower to avoid being out of memory if you can", NEVER_HEALTHY),
        ("refused", "UserError: captioner.server: it ended with 2 before it was healthy.", None,
         "unrecognized arguments: --slots", CRASHED),
        ("refused", "UserError: captioner.precision = fp8: needs", None, "", REFUSED),
        ("", "exit code 139", 139, "Segmentation fault", CRASHED),
    ],
)  # fmt: skip
def test_words_for_what_fails(kind: str, problem: str, code: int | None, log: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "engine-0.log").write_text(f"INFO loading\n{log}\nbye\n")
    assert classify(kind, problem, code, [tmp_path / "engine-0.log"])[0] == found
