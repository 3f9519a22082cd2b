"""Captions of shapes with one error of a known kind."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from recap.worlds import shapes
from recap.worlds.shape_scenes import COLOURS, KINDS, PLACES, Group, Scene


def _changed(scene: Scene, rng: random.Random, change: Callable[[Group], Group]) -> str:
    at = rng.randrange(len(scene.groups))
    groups = [change(group) if number == at else group for number, group in enumerate(scene.groups)]
    return shapes.caption(Scene(scene.background, tuple(groups)))


def _colour(scene: Scene, rng: random.Random) -> str:
    used = {group.colour for group in scene.groups}
    other = rng.choice([colour for colour in COLOURS if colour not in used])
    return _changed(scene, rng, lambda group: replace(group, colour=other))


def _count(scene: Scene, rng: random.Random) -> str:
    return _changed(scene, rng, lambda g: replace(g, count=rng.choice([n for n in (1, 2, 3) if n != g.count])))


def _place(scene: Scene, rng: random.Random) -> str:
    other = rng.choice([place for place in PLACES if place not in {group.place for group in scene.groups}])
    return _changed(scene, rng, lambda group: replace(group, place=other))


def _missing(scene: Scene, rng: random.Random) -> str:
    gone = rng.randrange(len(scene.groups))
    return shapes.caption(Scene(scene.background, tuple(g for n, g in enumerate(scene.groups) if n != gone)))


def _extra(scene: Scene, rng: random.Random) -> str:
    looks = {(group.colour, group.kind) for group in scene.groups}
    look = rng.choice([(colour, kind) for colour in COLOURS for kind in KINDS if (colour, kind) not in looks])
    place = rng.choice([place for place in PLACES if place not in {group.place for group in scene.groups}])
    group = Group(rng.choice((1, 2, 3)), "small", *look, place)
    return shapes.caption(Scene(scene.background, (*scene.groups, group)))


def _fluency(scene: Scene, rng: random.Random) -> str:
    """The words of each sentence in another order."""
    sentences = []
    for sentence in shapes.caption(scene).split(". "):
        words = sentence.rstrip(".").split()
        rng.shuffle(words)
        sentences.append(" ".join(words))
    return ". ".join(sentences) + "."


def _length(scene: Scene, rng: random.Random) -> str:
    """All of it twice."""
    return f"{shapes.caption(scene)} {shapes.caption(scene)}"


PLANTED: Mapping[str, Callable[[Scene, random.Random], str]] = {
    "false colour": _colour,
    "wrong count": _count,
    "wrong place": _place,
    "missing object": _missing,
    "extra object": _extra,
    "fluency": _fluency,
    "length": _length,
}
"""By the kind of the error: the detailed caption of a scene, with it."""
