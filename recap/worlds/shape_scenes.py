"""Scenes of coloured shapes: what stands in one, where, and its picture."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 40),
    "green": (20, 150, 60),
    "blue": (30, 70, 210),
    "yellow": (245, 210, 30),
    "purple": (130, 40, 160),
    "orange": (245, 130, 20),
    "black": (15, 15, 15),
    "pink": (250, 150, 190),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (150, 150, 150), "cream": (250, 240, 205)}
KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": 0.055, "large": 0.11}
"""Half the extent of one shape, as a share of the picture's side."""

COUNTS = ("zero", "one", "two", "three")
PLACES = {
    f"{down} {across}".replace("middle center", "center").replace("middle", "center"): (x, y)
    for y, down in ((1 / 6, "top"), (1 / 2, "middle"), (5 / 6, "bottom"))
    for x, across in ((1 / 6, "left"), (1 / 2, "center"), (5 / 6, "right"))
}
"""Name ("top left", "center", ...) -> centre of the cell, shares of the side."""


@dataclass(frozen=True, slots=True)
class Group:
    """`count` equal shapes side by side."""

    count: int
    size: str
    colour: str
    kind: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """The whole truth of a picture; groups in reading order."""

    background: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One shape: pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int
    group: int


def new_scene(rng: random.Random) -> Scene:
    """One to three groups at different places; no two share both colour and kind, so captions are
    unambiguous.
    """
    places = rng.sample(list(PLACES), rng.choice([1, 2, 2, 3]))
    looks: list[tuple[str, str]] = []
    while len(looks) < len(places):
        look = (rng.choice(list(COLOURS)), rng.choice(KINDS))
        if look not in looks:
            looks.append(look)
    groups = [
        Group(rng.choice([1, 1, 1, 2, 3]), rng.choice(list(SIZES)), colour, kind, place)
        for (colour, kind), place in zip(looks, sorted(places, key=list(PLACES).index), strict=True)
    ]
    groups = [group if group.size == "small" else Group(1, *_rest(group)) for group in groups]
    return Scene(rng.choice(list(BACKGROUNDS)), tuple(groups))


def _rest(group: Group) -> tuple[str, str, str, str]:
    return group.size, group.colour, group.kind, group.place  # a large shape fills its cell: it stands alone


def boxes(scene: Scene, side: int) -> list[Box]:
    """Where each shape lies in a picture of `side` pixels."""
    found = []
    for index, group in enumerate(scene.groups):
        x, y = PLACES[group.place]
        half = SIZES[group.size]
        step = half * 1.9
        for position in range(group.count):
            across = x + (position - (group.count - 1) / 2) * step
            corners = (across - half * 0.85, y - half * 0.85, across + half * 0.85, y + half * 0.85)
            left, top, right, bottom = (round(corner * side) for corner in corners)
            found.append(Box(left, top, right, bottom, index))
    return found


def draw(scene: Scene, side: int = 96) -> Image.Image:
    """An RGB picture of side x side pixels."""
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for box in boxes(scene, side):
        group = scene.groups[box.group]
        _draw_shape(pen, group.kind, box, COLOURS[group.colour])
    return image


def _draw_shape(pen: ImageDraw.ImageDraw, kind: str, box: Box, fill: tuple[int, int, int]) -> None:
    left, top, right, bottom = box.left, box.top, box.right - 1, box.bottom - 1
    width, height = right - left, bottom - top

    def at(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(left + x * width, top + y * height) for x, y in points]

    if kind == "circle":
        pen.ellipse((left, top, right, bottom), fill=fill)
    elif kind == "ring":
        pen.ellipse((left, top, right, bottom), outline=fill, width=max(2, round(width * 0.22)))
    elif kind == "square":
        pen.rectangle((left, top, right, bottom), fill=fill)
    elif kind == "triangle":
        pen.polygon(at([(0.5, 0), (1, 1), (0, 1)]), fill=fill)
    elif kind == "cross":
        pen.rectangle([*at([(0.34, 0)]), *at([(0.66, 1)])], fill=fill)
        pen.rectangle([*at([(0, 0.34)]), *at([(1, 0.66)])], fill=fill)
    else:
        star = [
            (0.5, 0),
            (0.62, 0.37),
            (1, 0.38),
            (0.7, 0.62),
            (0.81, 1),
            (0.5, 0.77),
            (0.19, 1),
            (0.3, 0.62),
            (0, 0.38),
            (0.38, 0.37),
        ]
        pen.polygon(at(star), fill=fill)


def plural(kind: str) -> str:
    return f"{kind}es" if kind == "cross" else f"{kind}s"
