"""Pictures of synthetic flags."""

from __future__ import annotations

import colorsys
import math
import random
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw

from recap.worlds.flag_scenes import WEIGHTS, Charge, Scene

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
            canvas.box(
                charge.x + dx,
                charge.y + dy,
                charge.x + dx + charge.radius * 0.7,
                charge.y + dy + charge.radius * 0.14,
                charge.colour,
            )
        return
    left = [
        (-angle, reach if rng.random() < 0.8 else reach * rng.uniform(0.6, 1.2)) for angle, reach in reversed(right)
    ]
    points = [(charge.x + reach * math.sin(angle), charge.y - reach * math.cos(angle)) for angle, reach in right + left]
    canvas.polygon(points, charge.colour)


def _draw_arms(canvas: _Canvas, x: float, y: float, radius: float) -> None:
    """A coat of arms: a shield in parts, often between a wreath or supporters, with crest and scroll.

    Many colours.
    """
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
    half, top, bottom = (
        radius * rng.uniform(0.35, 0.6),
        y - radius * rng.uniform(0.3, 0.6),
        y + radius * rng.uniform(0.5, 0.85),
    )
    canvas.polygon(
        [
            (x - half, top),
            (x + half, top),
            (x + half, y + 0.2 * radius),
            (x, bottom),
            (x - half, y + 0.2 * radius),
        ],
        rng.choice(colours),
    )
    for _ in range(rng.randint(2, 7)):
        dx, dy = rng.uniform(-0.8, 0.8) * half, rng.uniform(-0.5, 0.4) * radius
        size = radius * rng.uniform(0.08, 0.26)
        if rng.random() < 0.5:
            canvas.disc(x + dx, y + dy, size, rng.choice(colours))
        else:
            canvas.box(x + dx - size, y + dy - size / 2, x + dx + size, y + dy + size, rng.choice(colours))
    if rng.random() < 0.5:
        canvas.box(
            x - radius * 0.7,
            y + radius * 0.72,
            x + radius * 0.7,
            y + radius * 0.9,
            rng.choice(["white", "yellow", "red", "blue"]),
        )
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
    for band, width in zip(scene.bands, scene.widths, strict=True):
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


def _draw_teeth(canvas: _Canvas, x: float, colour: str) -> None:
    """A serrated edge on the fly side of a vertical band that ends at x."""
    teeth = canvas.rng.choice([5, 5, 7, 9])
    for tooth in range(teeth):
        top, bottom = tooth / teeth, (tooth + 1) / teeth
        canvas.polygon([(x - 0.01, top), (x + 0.2, (top + bottom) / 2), (x - 0.01, bottom)], colour)


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
        if len(scene.bands) == 1 and rng.random() < 0.35:
            _draw_teeth(canvas, scene.second_size, scene.second)
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
