"""Synthetic flags with captions in a small grammar: training data for the tiny captioner, without any real flag.

    python -m recap.worlds.flags OUT --shards 2 --samples 500 --seed 0

A flag is a `Scene` (facts), drawn by `draw` and told by `describe`; `parse` reads the facts back out of a caption, ours or a
human's. The grammar mimics the flag descriptions of The World Factbook:

    This flag has three horizontal bands of black (top), red, and green. The red band is edged in white. ...

Coordinates are fractions of the flag's height, x from the hoist (left).
"""

from __future__ import annotations

import argparse
import colorsys
import io
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from recap.demo.build_flags import write_tar

COLOURS = ("red", "orange", "yellow", "green", "blue", "black", "white", "gray")
SHADES = {
    "light blue": "blue", "sky blue": "blue", "dark blue": "blue", "navy": "blue", "turquoise": "blue",
    "aquamarine": "blue", "maroon": "red", "crimson": "red", "gold": "yellow", "golden": "yellow",
    "saffron": "orange", "brown": "orange", "copper": "orange", "light green": "green", "grey": "gray",
}  # fmt: skip
"""Other words for a colour -> the name it is judged under."""

LAYOUTS = ("horizontal", "vertical", "triangle", "hoist", "canton", "cross", "diagonal", "field")
"""Bands; bands with a triangle at the hoist; with a vertical band at the hoist; a canton; a cross to the edges; diagonal
division, stripe or cross; a plain field, whatever it bears. First match in the order canton ... field wins where two hold."""

COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen")

# (hue, saturation, value) ranges in degrees and per cent, wide enough for the shades seen on real flags.
HSV = {
    "red": ((-14, 8), (75, 100), (70, 100)),
    "maroon": ((-22, 5), (70, 100), (40, 62)),
    "orange": ((17, 36), (75, 100), (88, 100)),
    "yellow": ((44, 60), (65, 100), (86, 100)),
    "green": ((95, 168), (55, 100), (35, 75)),
    "blue": ((205, 245), (65, 100), (32, 85)),
    "light blue": ((188, 215), (40, 100), (75, 100)),
    "black": ((0, 360), (0, 10), (0, 12)),
    "white": ((0, 360), (0, 3), (95, 100)),
}
WEIGHTS = {
    "red": 24, "white": 20, "blue": 15, "green": 14, "yellow": 13, "black": 7, "light blue": 5, "orange": 4, "maroon": 1.5,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Charge:
    """Something laid on the flag: kind ("star", "disc", ...), how many, its colour, centre and radius (heights).

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


# ---------------------------------------------------------------- choosing


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
        "star": 26, "disc": 10, "crescent and star": 9, "coat of arms": 24, "emblem": 15, "sun": 8, "crescent": 3,
        "cross": 3, "circle of stars": 6, "diamond": 3,
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
    layout = rng.choices(LAYOUTS, [31, 14, 12, 6, 14, 8, 9, 16])[0]
    aspect = rng.choice([1.33, 1.5, 1.5, 1.5, 1.67, 2.0, 2.0])
    if layout == "vertical":
        return _with_band_charges(rng, _banded(rng, layout, aspect, rng.choice([2, 3, 3, 3, 3, 3])))
    if layout == "horizontal":
        count = rng.choices([2, 3, 4, 5, 6, 7, 9, 11, 13], [20, 62, 7, 14, 2, 2, 2, 1, 1])[0]
        return _with_band_charges(rng, _banded(rng, layout, aspect, count))
    makers = {
        "triangle": _triangle, "hoist": _hoist, "canton": _canton, "cross": _cross, "diagonal": _diagonal, "field": _field,
    }  # fmt: skip
    return makers[layout](rng, aspect)


def _banded(rng: random.Random, layout: str, aspect: float, count: int) -> Scene:
    scene = Scene(layout, pick_bands(rng, count), band_widths(rng, count), aspect, vertical=layout == "vertical")
    if count in (2, 3) and rng.random() < 0.13:
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
        x, place, middle = rng.uniform(0.25, 0.42) * scene.aspect, f"on the hoist side of the {scene.bands[band]} band", band
    scene.charges = [pick_charge(rng, scene.bands[middle], x, y, min(room, 0.34), place)]
    return scene


def _triangle(rng: random.Random, aspect: float) -> Scene:
    scene = _banded(rng, "triangle", aspect, rng.choices([1, 2, 3, 4, 5, 7], [8, 34, 40, 8, 8, 2])[0])
    if len(scene.bands) == 1:
        scene.widths, scene.edging = [1.0], ""
    scene.second = pick_colour(rng, scene.bands if rng.random() < 0.9 and len(set(scene.bands)) < 5 else [scene.bands[0]])
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
                pick_charge(rng, scene.second, scene.second_size / 2, 0.5, scene.second_size * 0.42, "in the vertical band")
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
        scene.charges = [pick_charge(rng, scene.second, width / 2, scene.second_size / 2, width * 0.42, "in the canton", 1)]
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


# ---------------------------------------------------------------- telling


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}{',' if len(words) > 2 else ''} and {words[-1]}"


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _opening(scene: Scene) -> str:
    bands = scene.bands
    if scene.layout == "cross":
        ground = f"{bands[0]}" if len(bands) == 1 else f"{bands[0]} and {bands[1]}"
        return f"This flag is {ground} with {_article(scene.second)} cross that extends to the edges."
    if scene.layout == "diagonal" and scene.shifted:
        if len(bands) == 1:
            return f"This flag is {bands[0]} with {_article(scene.second)} diagonal cross."
        return f"This flag is divided by {_article(scene.second)} diagonal cross into {bands[0]} and {bands[1]} panels."
    if scene.layout == "diagonal":
        by = f" by {_article(scene.second)} stripe" if scene.second else ""
        return f"This flag is divided diagonally{by}. The upper triangle is {bands[0]} and the lower triangle is {bands[1]}."
    if len(bands) == 1:
        return f"This flag is {bands[0]}."
    direction, first = ("vertical", "hoist side") if scene.vertical else ("horizontal", "top")
    count = COUNTS[len(bands)]
    if len(bands) >= 5 and all(band == bands[index % 2] for index, band in enumerate(bands)):
        return f"This flag has {count} {direction} stripes of {bands[0]} alternating with {bands[1]}."
    return f"This flag has {count} {direction} bands of {_listed([f'{bands[0]} ({first})', *bands[1:]])}."


def _second(scene: Scene) -> list[str]:
    told = []
    if scene.edging:
        subject = f"The {scene.bands[1]} band is" if len(scene.bands) == 3 else "The bands are"
        told.append(f"{subject} edged in {scene.edging}.")
    if scene.layout == "triangle":
        told.append(f"{_article(scene.second).capitalize()} triangle is based on the hoist side.")
    if scene.layout == "hoist":
        told.append(f"A vertical {scene.second} band is on the hoist side.")
    if scene.layout == "canton":
        what = "The red, white, and blue flag of the UK" if scene.second == "UK" else f"{_article(scene.second).capitalize()} rectangle"
        told.append(f"{what} is in the upper hoist-side corner.")
    if scene.layout == "cross" and scene.shifted:
        told.append("The vertical part of the cross is shifted to the hoist side.")
    if scene.second_edge:
        thing = {"triangle": "triangle", "cross": "cross", "diagonal": "stripe"}[scene.layout]
        told.append(f"The {thing} is edged in {scene.second_edge}.")
    if scene.border:
        told.append(f"The flag has {_article(scene.border)} border.")
    return told


def _charge_phrase(charge: Charge) -> str:
    if charge.kind == "coat of arms":
        return "a coat of arms"
    if charge.kind == "circle of stars":
        return f"a circle of {charge.colour} stars"
    if charge.count > 1:
        return f"{COUNTS[charge.count]} {charge.colour} {charge.kind}s"
    return _article(f"{charge.colour} {charge.kind}")


def describe(scene: Scene) -> str:
    """The caption: what is there, nothing else; longer for a busier flag."""
    sentences = [_opening(scene), *_second(scene)]
    for charge in scene.charges:
        phrase = _charge_phrase(charge)
        verb = "are" if charge.count > 1 and charge.kind == "star" else "is"
        bearing = f" and bears {_charge_phrase(charge.on)}" if charge.on else ""
        sentences.append(f"{phrase[0].upper()}{phrase[1:]} {verb} {charge.place}{bearing}.")
    return " ".join(sentences)


# ---------------------------------------------------------------- drawing


class _Canvas:
    """A picture addressed in heights; `paint` fixes one shade per colour name for the whole flag."""

    def __init__(self, rng: random.Random, aspect: float, width: int) -> None:
        self.rng = rng
        self.height = round(width / aspect)
        self.aspect = width / self.height
        self.image = Image.new("RGB", (width, self.height), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.shades: dict[str, tuple[int, int, int]] = {}

    def paint(self, colour: str) -> tuple[int, int, int]:
        if colour not in self.shades:
            hue, saturation, value = (self.rng.uniform(*bounds) for bounds in HSV[colour])
            red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation / 100, value / 100)
            self.shades[colour] = (round(255 * red), round(255 * green), round(255 * blue))
        return self.shades[colour]

    def polygon(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        self.pen.polygon([(x * self.height, y * self.height) for x, y in points], fill=self.paint(colour))

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def disc(self, x: float, y: float, radius: float, colour: str) -> None:
        corners = [value * self.height for value in (x - radius, y - radius, x + radius, y + radius)]
        self.pen.ellipse(corners, fill=self.paint(colour))

    def star(self, x: float, y: float, radius: float, colour: str, points: int = 5, inner: float = 0.4) -> None:
        spokes = []
        for index in range(2 * points):
            reach = radius * (1.0 if index % 2 == 0 else inner)
            angle = math.pi * index / points
            spokes.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        self.polygon(spokes, colour)

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float, colour: str) -> None:
        """A thick straight stripe that runs on beyond both ends."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = math.hypot(dx, dy)
        dx, dy = dx / length, dy / length
        (x0, y0), (x1, y1) = (start[0] - dx, start[1] - dy), (end[0] + dx, end[1] + dy)
        nx, ny = -dy * width / 2, dx * width / 2
        self.polygon([(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)], colour)


def _draw_charge(canvas: _Canvas, charge: Charge, ground: str) -> None:
    x, y, radius, rng = charge.x, charge.y, charge.radius, canvas.rng
    if charge.kind == "star" and charge.count > 1:
        _draw_stars(canvas, charge)
    elif charge.kind == "star":
        canvas.star(x, y, radius, charge.colour, rng.choice([5, 5, 5, 5, 6, 7]), rng.uniform(0.36, 0.46))
    elif charge.kind == "circle of stars":
        for index in range(charge.count):
            angle = 2 * math.pi * index / charge.count
            size = radius * rng.uniform(0.17, 0.2)
            canvas.star(x + radius * 0.8 * math.sin(angle), y - radius * 0.8 * math.cos(angle), size, charge.colour)
    elif charge.kind == "disc":
        canvas.disc(x, y, radius, charge.colour)
    elif charge.kind == "diamond":
        wide = min(radius * 1.5, canvas.aspect / 2)
        canvas.polygon([(x - wide, y), (x, y - radius), (x + wide, y), (x, y + radius)], charge.colour)
    elif charge.kind == "sun":
        canvas.star(x, y, radius, charge.colour, rng.choice([8, 12, 16, 20]), rng.uniform(0.5, 0.75))
    elif charge.kind == "cross":
        arm = radius * rng.uniform(0.25, 0.4)
        canvas.box(x - radius, y - arm, x + radius, y + arm, charge.colour)
        canvas.box(x - arm, y - radius, x + arm, y + radius, charge.colour)
    elif charge.kind.startswith("crescent"):
        _draw_crescent(canvas, charge, ground)
    elif charge.kind == "emblem":
        _draw_emblem(canvas, charge)
    else:
        _draw_arms(canvas, x, y, radius)
    if charge.on:
        _draw_charge(canvas, charge.on, charge.colour)


def _draw_stars(canvas: _Canvas, charge: Charge) -> None:
    """Several stars: in a row, an arc or scattered as a constellation."""
    rng, count, reach = canvas.rng, charge.count, charge.radius
    style = rng.choice(["row", "column", "ring", "scatter"])
    size = min(reach * 0.42, reach * 1.6 / count) if style in ("row", "column") else reach * rng.uniform(0.2, 0.34)
    for index in range(count):
        along = 0.0 if count == 1 else (index / (count - 1) * 2 - 1) * (reach - size * 0.6)
        angle = 2 * math.pi * index / count
        spread = reach * (0.75 if style == "ring" else rng.uniform(0.45, 0.85))
        dx, dy = {"row": (along, 0.0), "column": (0.0, along)}.get(
            style, (spread * math.sin(angle), -spread * math.cos(angle))
        )
        canvas.star(charge.x + dx, charge.y + dy, size * rng.uniform(0.9, 1.1), charge.colour)


def _draw_crescent(canvas: _Canvas, charge: Charge, ground: str) -> None:
    x, y, radius, rng = charge.x, charge.y, charge.radius, canvas.rng
    canvas.disc(x, y, radius, charge.colour)
    canvas.disc(x + radius * rng.uniform(0.22, 0.35), y, radius * rng.uniform(0.76, 0.84), ground)
    if charge.kind == "crescent and star":
        canvas.star(x + radius * rng.uniform(0.4, 0.9), y, radius * rng.uniform(0.35, 0.5), charge.colour)


def _draw_emblem(canvas: _Canvas, charge: Charge) -> None:
    """A one-coloured silhouette (eagle, tree, map, writing, leaf): a random outline, mostly mirrored."""
    rng = canvas.rng
    spokes = rng.randint(5, 14)
    right = [(math.pi * (index + 0.5) / spokes, charge.radius * rng.uniform(0.35, 1.05)) for index in range(spokes)]
    if rng.random() < 0.25:  # writing, a sword, a weapon: several flat strokes
        for _ in range(rng.randint(3, 7)):
            dx, dy = rng.uniform(-1, 0.4) * charge.radius, rng.uniform(-0.5, 0.5) * charge.radius
            canvas.box(charge.x + dx, charge.y + dy, charge.x + dx + charge.radius * 0.7, charge.y + dy + charge.radius * 0.14, charge.colour)
        return
    left = [(-angle, reach if rng.random() < 0.8 else reach * rng.uniform(0.6, 1.2)) for angle, reach in reversed(right)]
    points = [(charge.x + reach * math.sin(angle), charge.y - reach * math.cos(angle)) for angle, reach in right + left]
    canvas.polygon(points, charge.colour)


def _draw_arms(canvas: _Canvas, x: float, y: float, radius: float) -> None:
    """A coat of arms: a shield in parts, often between a wreath or supporters, with crest and scroll. Many colours."""
    rng = canvas.rng
    colours = list(WEIGHTS)
    if rng.random() < 0.3:
        canvas.disc(x, y, radius, rng.choice(["white", "white", "yellow"]))
        radius *= 0.85
    if rng.random() < 0.55:
        wreath = rng.choice(["green", "green", "yellow", "red", "white"])
        for index in range(14):
            angle = math.pi * (0.15 + 1.7 * index / 13)
            canvas.disc(x + radius * 0.8 * math.sin(angle), y - radius * 0.8 * math.cos(angle), radius * 0.16, wreath)
    half, top, bottom = radius * rng.uniform(0.35, 0.6), y - radius * rng.uniform(0.3, 0.6), y + radius * rng.uniform(0.5, 0.85)
    canvas.polygon([(x - half, top), (x + half, top), (x + half, y + 0.2 * radius), (x, bottom), (x - half, y + 0.2 * radius)], rng.choice(colours))
    for _ in range(rng.randint(2, 7)):
        dx, dy = rng.uniform(-0.8, 0.8) * half, rng.uniform(-0.5, 0.4) * radius
        size = radius * rng.uniform(0.08, 0.26)
        if rng.random() < 0.5:
            canvas.disc(x + dx, y + dy, size, rng.choice(colours))
        else:
            canvas.box(x + dx - size, y + dy - size / 2, x + dx + size, y + dy + size, rng.choice(colours))
    if rng.random() < 0.5:
        canvas.box(x - radius * 0.7, y + radius * 0.72, x + radius * 0.7, y + radius * 0.9, rng.choice(["white", "yellow", "red", "blue"]))
    if rng.random() < 0.5:
        canvas.star(x, y - radius * 0.75, radius * 0.25, rng.choice(["yellow", "red", "white"]), 7, 0.6)


def _draw_union_flag(canvas: _Canvas, width: float, height: float) -> None:
    """The UK's flag in the canton, drawn apart and pasted so that its diagonals are cut off."""
    part = _Canvas(canvas.rng, width / height, max(8, round(width * canvas.height)))
    part.shades = {"blue": (1, 33, 105), "red": (200, 16, 46), "white": (255, 255, 255)}
    corner = part.aspect
    part.box(0, 0, corner, 1, "blue")
    for colour, thick in (("white", 0.2), ("red", 0.07)):
        part.line((0, 0), (corner, 1), thick, colour)
        part.line((0, 1), (corner, 0), thick, colour)
    for colour, arm in (("white", 0.167), ("red", 0.1)):
        part.box(0, 0.5 - arm, corner, 0.5 + arm, colour)
        part.box(corner / 2 - arm, 0, corner / 2 + arm, 1, colour)
    canvas.image.paste(part.image, (0, 0))


def _draw_bands(canvas: _Canvas, scene: Scene) -> None:
    position = 0.0
    for index, (band, width) in enumerate(zip(scene.bands, scene.widths, strict=True)):
        start, end = position, position + width
        if scene.vertical:
            canvas.box(start * canvas.aspect, 0, end * canvas.aspect + 0.01, 1, band)
        else:
            canvas.box(0, start, canvas.aspect, end + 0.01, band)
        position = end
    position = 0.0
    for width in scene.widths[:-1] if scene.edging else []:
        position += width
        if scene.vertical:
            canvas.box(position * canvas.aspect - 0.022, 0, position * canvas.aspect + 0.022, 1, scene.edging)
        else:
            canvas.box(0, position - 0.022, canvas.aspect, position + 0.022, scene.edging)


def _draw_cross(canvas: _Canvas, scene: Scene) -> None:
    wide = canvas.aspect
    if len(scene.bands) == 1:
        canvas.box(0, 0, wide, 1, scene.bands[0])
    else:  # quarters
        canvas.box(0, 0, wide, 1, scene.bands[0])
        canvas.box(wide / 2, 0, wide, 0.5, scene.bands[1])
        canvas.box(0, 0.5, wide / 2, 1, scene.bands[1])
    x = wide * 0.37 if scene.shifted else wide / 2
    arms = [(scene.second_size / 2, scene.second)]
    if scene.second_edge:
        arms.insert(0, (scene.second_size / 2 + 0.05, scene.second_edge))
    for arm, colour in arms:
        canvas.box(0, 0.5 - arm, wide, 0.5 + arm, colour)
        canvas.box(x - arm, 0, x + arm, 1, colour)


def _draw_diagonal(canvas: _Canvas, scene: Scene) -> None:
    wide = canvas.aspect
    canvas.box(0, 0, wide, 1, scene.bands[0])
    ends = [((0.0, 1.0), (wide, 0.0)), ((0.0, 0.0), (wide, 1.0))]
    if scene.shifted:  # a diagonal cross; the second colour fills hoist and fly
        for side in (0.0, wide) if len(scene.bands) == 2 else ():
            canvas.polygon([(side, 0), (wide / 2, 0.5), (side, 1)], scene.bands[1])
        for start, end in ends:
            canvas.line(start, end, scene.second_size, scene.second)
        return
    start, end = ends[0] if scene.rising else ends[1]
    canvas.polygon([start, end, (wide, 1) if scene.rising else (0, 1)], scene.bands[1])
    if scene.second_edge:
        canvas.line(start, end, scene.second_size + 0.09, scene.second_edge)
    if scene.second:
        canvas.line(start, end, scene.second_size, scene.second)


def draw(scene: Scene, rng: random.Random, width: int = 256) -> Image.Image:
    """The flag as an RGB picture without antialiasing: scale it down by two or more before use."""
    canvas = _Canvas(rng, scene.aspect, width)
    if scene.layout == "cross":
        _draw_cross(canvas, scene)
    elif scene.layout == "diagonal":
        _draw_diagonal(canvas, scene)
    else:
        _draw_bands(canvas, scene)
    if scene.layout == "triangle":
        if scene.second_edge:
            canvas.polygon([(0, -0.1), (0, 1.1), (scene.second_size + 0.11, 0.5)], scene.second_edge)
        canvas.polygon([(0, 0), (0, 1), (scene.second_size, 0.5)], scene.second)
    if scene.layout == "hoist":
        canvas.box(0, 0, scene.second_size, 1, scene.second)
    if scene.layout == "canton":
        across = scene.second_size if scene.second != "UK" else canvas.aspect / 2
        if scene.second == "UK":
            _draw_union_flag(canvas, across, scene.second_size)
        else:
            canvas.box(0, 0, min(across, canvas.aspect * 0.42), scene.second_size, scene.second)
    for charge in scene.charges:
        _draw_charge(canvas, charge, _ground(scene, charge))
    if scene.border:
        edge = round(canvas.height * rng.uniform(0.04, 0.1))
        right, bottom = canvas.image.width - 1, canvas.image.height - 1
        canvas.pen.rectangle((0, 0, right, bottom), outline=canvas.paint(scene.border), width=edge)
    return canvas.image


def _ground(scene: Scene, charge: Charge) -> str:
    """The colour a charge lies on: crescents are cut out in it."""
    if charge.place in ("in the triangle", "in the vertical band", "in the canton"):
        return scene.second
    named = re.search(r"the (\w+(?: blue)?) band", charge.place)
    if named:
        return named[1]
    if scene.layout == "cross":
        return scene.second
    return scene.bands[len(scene.bands) // 2] if len(scene.bands) % 2 else scene.bands[0]


# ---------------------------------------------------------------- reading captions


@dataclass(frozen=True, slots=True)
class Facts:
    """What a caption claims: colours (of COLOURS), a layout (of LAYOUTS, "" if none is told), bands in order (or ())."""

    colours: frozenset[str]
    layout: str
    bands: tuple[str, ...]


_COLOUR_WORD = re.compile(
    r"\b(" + "|".join(sorted([*SHADES, *COLOURS], key=len, reverse=True)).replace(" ", r"[ -]") + r")\b", re.IGNORECASE
)
_BANDS = re.compile(r"\b(?:bands|stripes) (?:consisting )?of ([^.;]*)", re.IGNORECASE)
_RULES = (
    ("canton", r"flag of the UK|Union Jack|(rectangle|square)[^.;]*upper (hoist|corner)|upper hoist[^.;]*(rectangle|square)|canton"),
    ("triangle", r"triangle[^.;]*(based on|on the hoist|hoist)|trapezoid"),
    ("hoist", r"vertical( \w+){0,2} (band|stripe)[^.;]*on (the )?hoist|serrated band"),
    ("diagonal", r"diagonal|oblique"),
    ("cross", r"cross\b[^.;]*(edges|extend)|cross of Saint George"),
    ("vertical", r"vertical( \w+)? (bands|stripes)|vertical bands"),
    ("horizontal", r"horizontal( \w+)? (bands|stripes|band|stripe)|horizontal"),
)


def colours_in(text: str) -> list[str]:
    """Colour names in the order of the text, shades under their main name."""
    words = (match[1].lower().replace("-", " ") for match in _COLOUR_WORD.finditer(text))
    return [SHADES.get(word, word) for word in words]


def layout_in(text: str) -> str:
    """The layout class that a caption tells, by the first rule that matches; "" for an empty caption."""
    for layout, rule in _RULES:
        if re.search(rule, text, re.IGNORECASE):
            return layout
    return "field" if colours_in(text) else ""


def bands_in(text: str) -> tuple[str, ...]:
    """Colours of "three horizontal bands of red (top), white, and blue", in order; stripes that alternate are counted out."""
    match = _BANDS.search(text)
    if not match:
        return ()
    listing = re.split(r"\bwith (?!red|white|blue|green|yellow|black|orange|light)|\bcentered\b", match[1])[0]
    bands = colours_in(listing)
    counted = re.search(r"\b(" + "|".join(COUNTS[5:]) + r")\b", text, re.IGNORECASE)
    if "alternating with" in listing and len(bands) == 2 and counted:
        return tuple(bands[index % 2] for index in range(COUNTS.index(counted[1].lower())))
    return tuple(bands)


def parse(caption: str) -> Facts:
    """The facts a caption claims. Exact on our own grammar, a fair reading of the factbook's."""
    layout = layout_in(caption)
    banded = layout in ("horizontal", "vertical")
    return Facts(frozenset(colours_in(caption)), layout, bands_in(caption) if banded else ())


# ---------------------------------------------------------------- samples and shards


def sample(seed: int, index: int) -> tuple[Scene, Image.Image, str]:
    """The index-th flag of a seed: its facts, a 128 px wide picture, its caption. Independent of every other index."""
    rng = random.Random(f"flags/{seed}/{index}")
    scene = new_scene(rng)
    picture = draw(scene, rng)
    small = picture.resize((128, picture.height // 2), Image.Resampling.BOX)
    return scene, small, describe(scene)


def write_shard(path: Path, seed: int, first: int, samples: int) -> None:
    """One webdataset tar of samples first .. first+samples-1: png, txt (the caption), json (layout, bands)."""

    def files(index: int) -> dict[str, bytes]:
        scene, picture, caption = sample(seed, index)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        about = {"layout": scene.layout, "bands": scene.bands, "colours": sorted(parse(caption).colours)}
        return {"png": buffer.getvalue(), "txt": caption.encode(), "json": json.dumps(about).encode()}

    with path.open("wb") as file:
        write_tar(file, ((f"{index:08d}", files(index)) for index in range(first, first + samples)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--samples", type=int, default=500, help="per shard")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for shard in range(arguments.shards):
        write_shard(arguments.out / f"{shard:05d}.tar", arguments.seed, shard * arguments.samples, arguments.samples)


if __name__ == "__main__":
    main()
