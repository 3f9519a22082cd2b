"""What is on a synthetic flag: the facts, chosen at random with the habits of real flags.

Coordinates are fractions of the flag's height, x from the hoist (left).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

COLOURS = ("red", "orange", "yellow", "green", "blue", "black", "white", "gray")
SHADES = {
    "light blue": "blue", "sky blue": "blue", "dark blue": "blue", "navy": "blue", "turquoise": "blue",
    "aquamarine": "blue", "maroon": "red", "crimson": "red", "gold": "yellow", "golden": "yellow",
    "saffron": "orange", "brown": "orange", "copper": "orange", "light green": "green", "grey": "gray",
}  # fmt: skip
"""Other words for a colour -> the name it is judged under."""

LAYOUTS = ("horizontal", "vertical", "triangle", "hoist", "canton", "cross", "diagonal", "field")
"""Bands; bands with a triangle at the hoist; with a vertical band at the hoist; a canton; a cross to the
edges; a diagonal division, stripe or cross; a plain field, whatever it bears."""

WEIGHTS = {
    "red": 24, "white": 20, "blue": 15, "green": 14, "yellow": 13, "black": 7, "light blue": 5, "orange": 4,
    "maroon": 1.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Charge:
    """Something laid on the flag: kind, how many, its colour, centre and radius (heights).

    place: how the caption says where. on: a second charge upon this one (a disc bearing a star).
    """

    kind: str
    count: int
    colour: str
    x: float
    y: float
    radius: float
    place: str
    on: Charge | None = None


@dataclass(slots=True)
class Scene:
    """The facts of one flag. `bands` are the main colours in order (top or hoist first); one for a field."""

    layout: str
    bands: list[str]
    widths: list[float]
    aspect: float
    vertical: bool = False
    edging: str = ""
    second: str = ""  # colour of the triangle, hoist band, canton, cross or diagonal stripe; "UK" in a canton
    second_edge: str = ""
    second_size: float = 0.0
    shifted: bool = False
    rising: bool = True  # a diagonal runs from the lower hoist to the upper fly
    border: str = ""
    charges: list[Charge] = field(default_factory=list)


def pick_colour(rng: random.Random, avoid: Sequence[str] = ()) -> str:
    """A colour by its frequency on flags, told apart from those to avoid (shades of one name are not)."""
    names = {SHADES.get(name, name) for name in avoid}
    pool = [name for name in WEIGHTS if SHADES.get(name, name) not in names]
    if "white" in names and rng.random() < 0.8:
        pool = [name for name in pool if name != "yellow"]  # too close to see, and rare on real flags
    if "yellow" in names and len(pool) > 3 and rng.random() < 0.6:
        pool = [name for name in pool if name not in ("white", "orange")]
    return rng.choices(pool, [WEIGHTS[name] for name in pool])[0]


def pick_bands(rng: random.Random, count: int) -> list[str]:
    """Band colours: mirrored (ABA, ABCBA), alternating when many, else neighbours that differ."""
    first = pick_colour(rng)
    second = pick_colour(rng, [first])
    if count >= 5 and rng.random() < 0.55:
        return [first if index % 2 == 0 else second for index in range(count)]
    bands = [first, second][:count]
    while len(bands) < count:
        used = bands if rng.random() < 0.8 and len(bands) < 4 else bands[-1:]
        bands.append(pick_colour(rng, used))
    if count in (3, 5, 7) and rng.random() < 0.4:
        bands = bands[: count // 2 + 1] + bands[: count // 2][::-1]
    return bands


def band_widths(rng: random.Random, count: int) -> list[float]:
    """Shares of the flag: mostly equal, sometimes one band (or the outer ones) wider."""
    widths = [1.0] * count
    if count in (2, 3, 4, 5) and rng.random() < 0.3:
        wide = rng.choice([0, count // 2, count // 2, count - 1])
        widths[wide] = rng.uniform(1.4, 3.0)
    total = sum(widths)
    return [width / total for width in widths]


def pick_charge(rng: random.Random, ground: str, x: float, y: float, room: float, place: str, depth: int = 0) -> Charge:
    """A charge in a contrasting colour that fits into `room` (radius, heights)."""
    kinds = {
        "star": 26, "disc": 10, "crescent and star": 9, "coat of arms": 21, "emblem": 19, "sun": 8,
        "crescent": 3, "cross": 3, "circle of stars": 6, "diamond": 3,
    }  # fmt: skip
    if depth:
        for kind in ("disc", "circle of stars", "diamond"):
            del kinds[kind]
    kind = rng.choices(list(kinds), list(kinds.values()))[0]
    colour = "" if kind == "coat of arms" else pick_colour(rng, [ground])
    radius = max(0.1, room * rng.uniform(0.55, 1.0))
    count = 1
    if kind == "star" and rng.random() < 0.45 and room > 0.12:
        count = rng.choice([2, 3, 3, 4, 4, 5, 5, 5, 6, 7])
        radius = room
    if kind == "circle of stars":
        count = rng.choice([6, 8, 10, 12])
        radius = room
    on = None
    if kind in ("disc", "diamond") and rng.random() < 0.55:
        on = pick_charge(rng, colour, x, y, radius * 0.65, "", depth + 1)
    return Charge(kind, count, colour, x, y, radius, place, on)


def new_scene(rng: random.Random) -> Scene:
    """Draw the facts of a flag."""
    layout = rng.choices(LAYOUTS, [30, 14, 12, 8, 14, 7, 9, 16])[0]
    aspect = rng.choice([1.33, 1.5, 1.5, 1.5, 1.67, 2.0, 2.0])
    if layout == "vertical":
        return _with_band_charges(rng, _banded(rng, layout, aspect, rng.choice([2, 3, 3, 3, 3, 3])))
    if layout == "horizontal":
        count = rng.choices([2, 3, 4, 5, 6, 7, 9, 11, 13], [20, 62, 7, 14, 2, 2, 2, 1, 1])[0]
        return _with_band_charges(rng, _banded(rng, layout, aspect, count))
    makers = {
        "triangle": _triangle, "hoist": _hoist, "canton": _canton, "cross": _cross, "diagonal": _diagonal,
        "field": _field,
    }  # fmt: skip
    return makers[layout](rng, aspect)


def _banded(rng: random.Random, layout: str, aspect: float, count: int) -> Scene:
    scene = Scene(layout, pick_bands(rng, count), band_widths(rng, count), aspect, vertical=layout == "vertical")
    if count in (2, 3) and rng.random() < 0.2:
        scene.edging = pick_colour(rng, scene.bands)
    return scene


def _with_band_charges(rng: random.Random, scene: Scene) -> Scene:
    """Most banded flags are plain; the others bear something in the middle or near the hoist."""
    if rng.random() < 0.45 or len(scene.bands) > 7:
        return scene
    middle = len(scene.bands) // 2
    start = sum(scene.widths[:middle])
    odd = len(scene.bands) % 2 == 1
    if scene.vertical:
        center = (start + scene.widths[middle] / 2) * scene.aspect if odd else scene.aspect / 2
        room = scene.widths[middle] * scene.aspect * 0.46 if odd else 0.28
        x, y, place = center, 0.5, f"centered in the {scene.bands[middle]} band" if odd else "in the center"
        if rng.random() < 0.12:
            x, place, middle = scene.widths[0] * scene.aspect / 2, "on the hoist side", 0
        scene.charges = [pick_charge(rng, scene.bands[middle], x, y, min(room, 0.32), place)]
        return scene
    height = scene.widths[middle]
    if odd and rng.random() < 0.6:
        y, room, place = start + height / 2, height * 0.48, f"centered in the {scene.bands[middle]} band"
    else:
        y, room, place = 0.5, rng.uniform(0.15, 0.34), "in the center"
        middle = middle if odd else 0
    x = scene.aspect / 2
    if rng.random() < 0.2:
        band = rng.choice([0, middle])
        y, room = sum(scene.widths[:band]) + scene.widths[band] / 2, scene.widths[band] * 0.45
        x, place, middle = (
            rng.uniform(0.25, 0.42) * scene.aspect,
            f"on the hoist side of the {scene.bands[band]} band",
            band,
        )
    scene.charges = [pick_charge(rng, scene.bands[middle], x, y, min(room, 0.34), place)]
    return scene


def _triangle(rng: random.Random, aspect: float) -> Scene:
    scene = _banded(rng, "triangle", aspect, rng.choices([1, 2, 3, 4, 5, 7], [8, 34, 40, 8, 8, 2])[0])
    if len(scene.bands) == 1:
        scene.widths, scene.edging = [1.0], ""
    scene.second = pick_colour(
        rng, scene.bands if rng.random() < 0.9 and len(set(scene.bands)) < 5 else [scene.bands[0]]
    )
    scene.second_size = rng.choice([0.5, 0.6, 0.75, 0.87, 0.87, 1.0, aspect * 0.5])
    if rng.random() < 0.2:
        scene.second_edge = pick_colour(rng, [scene.second, *scene.bands[:1]])
    if rng.random() < 0.5:
        room = scene.second_size * 0.27
        place = "in the triangle"
        charge = pick_charge(rng, scene.second, scene.second_size * 0.34, 0.5, room, place)
        scene.charges = [charge]
    return scene


def _hoist(rng: random.Random, aspect: float) -> Scene:
    scene = _banded(rng, "hoist", aspect, rng.choices([1, 2, 3], [30, 42, 28])[0])
    scene.edging = ""
    if len(scene.bands) == 1:
        scene.widths = [1.0]
    scene.second = pick_colour(rng, scene.bands[:2] if rng.random() < 0.8 else scene.bands[:1])
    scene.second_size = aspect * rng.uniform(0.2, 0.38)
    if rng.random() < 0.55:
        if rng.random() < 0.5:
            scene.charges = [
                pick_charge(
                    rng,
                    scene.second,
                    scene.second_size / 2,
                    0.5,
                    scene.second_size * 0.42,
                    "in the vertical band",
                )
            ]
        elif len(scene.bands) == 1:
            x = (scene.second_size + aspect) / 2
            scene.charges = [pick_charge(rng, scene.bands[0], x, 0.5, 0.3, "on the fly side")]
    return scene


def _canton(rng: random.Random, aspect: float) -> Scene:
    if rng.random() < 0.55:
        ground = rng.choices(["blue", "light blue", "red", "white", "yellow", "green"], [62, 14, 10, 6, 3, 5])[0]
        scene = Scene("canton", [ground], [1.0], rng.choice([aspect, 2.0, 2.0]), second="UK", second_size=0.5)
        x, y, room = scene.aspect * rng.uniform(0.7, 0.77), rng.uniform(0.45, 0.6), 0.32
        if rng.random() < 0.6:
            place = "on the fly side"
            scene.charges = [Charge("coat of arms", 1, "", x, y, room * rng.uniform(0.6, 1), place)]
        elif rng.random() < 0.9:
            scene.charges = [pick_charge(rng, ground, x, y, room, "on the fly side")]
        return scene
    count = rng.choices([1, 2, 3, 5, 7, 9, 11, 13], [35, 25, 8, 8, 4, 8, 4, 8])[0]
    scene = _banded(rng, "canton", aspect, count)
    scene.edging = ""
    if count == 1:
        scene.widths = [1.0]
    scene.widths = [1 / count] * count
    scene.second = pick_colour(rng, scene.bands[:1])
    scene.second_size = 0.5 if count < 5 else (count // 2 + 1) / count
    if rng.random() < 0.85:
        width = min(scene.second_size, aspect * 0.42)
        scene.charges = [
            pick_charge(rng, scene.second, width / 2, scene.second_size / 2, width * 0.42, "in the canton", 1)
        ]
    return scene


def _cross(rng: random.Random, aspect: float) -> Scene:
    ground = pick_colour(rng)
    scene = Scene("cross", [ground], [1.0], aspect, second=pick_colour(rng, [ground]), shifted=rng.random() < 0.65)
    scene.second_size = rng.uniform(0.1, 0.24)
    if rng.random() < 0.5:
        scene.second_edge = pick_colour(rng, [scene.second, ground])
    if not scene.shifted and rng.random() < 0.4:
        scene.charges = [pick_charge(rng, scene.second, aspect / 2, 0.5, 0.2, "in the center")]
    if rng.random() < 0.15:
        scene.bands = [ground, pick_colour(rng, [ground, scene.second])]
    return scene


def _diagonal(rng: random.Random, aspect: float) -> Scene:
    first = pick_colour(rng)
    second = first if rng.random() < 0.15 else pick_colour(rng, [first])
    scene = Scene("diagonal", [first, second], [0.5, 0.5], aspect, rising=rng.random() < 0.7)
    if rng.random() < 0.3:  # a diagonal cross, alone or between two colours of panels
        scene.bands = [first] if rng.random() < 0.6 or second == first else [first, second]
        scene.second, scene.second_size = pick_colour(rng, [first, second]), rng.uniform(0.1, 0.22)
        scene.shifted = True
        return scene
    if second == first or rng.random() < 0.65:
        scene.second, scene.second_size = pick_colour(rng, [first, second]), rng.uniform(0.07, 0.36)
        if rng.random() < 0.4:
            scene.second_edge = pick_colour(rng, [scene.second, first])
    if rng.random() < 0.45:
        x = 0.22 if scene.rising else 0.75
        scene.charges = [pick_charge(rng, first, aspect * x, 0.25, 0.19, "in the upper part")]
    elif not scene.second and rng.random() < 0.5:
        scene.charges = [pick_charge(rng, first, aspect / 2, 0.5, 0.34, "in the center")]
    return scene


def _field(rng: random.Random, aspect: float) -> Scene:
    ground = pick_colour(rng)
    scene = Scene("field", [ground], [1.0], aspect)
    x, y, room, place = aspect / 2, 0.5, rng.uniform(0.22, 0.46), "in the center"
    if rng.random() < 0.22:
        x, y, room, place = aspect * rng.uniform(0.2, 0.38), rng.uniform(0.28, 0.5), 0.27, "on the hoist side"
    scene.charges = [pick_charge(rng, ground, x, y, room, place)]
    if rng.random() < 0.14:
        scene.border = pick_colour(rng, [ground])
    return scene
