"""What is known of a world's pictures, and what texts about them have right and wrong."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.worlds import emoji, flag_captions, shape_claims, shape_scenes, shapes

_WORD = re.compile(r"[\w./#@-]+")


@dataclass(frozen=True)
class Judged:
    """Facts of a picture that a text has right, has wrong, and leaves out."""

    right: int
    wrong: int
    unsaid: int


@dataclass(frozen=True)
class Truth:
    """What is known of one picture.

    judge: counts a text's facts. attributes: what may be asked for, by the word that asks.
    """

    key: str
    caption: str
    judge: Callable[[str], Judged]
    attributes: Mapping[str, str]


def truth_of_shapes(key: str, about: dict[str, Any]) -> Truth:
    scene = shapes.scene_from_json(about)
    first = scene.groups[0]

    def judge(text: str) -> Judged:
        found = shape_claims.judge(text, scene)
        return Judged(len(found.verdicts) - len(found.wrong), len(found.wrong), len(found.unsaid))

    attributes = {
        "colour": f"The {first.kind} is {first.colour}.",
        "how many": f"There is {shapes.caption(shape_scenes.Scene(scene.background, (first,)), 'short')}.",
        "where": f"The {first.kind} is in the {first.place}.",
        "background": f"The background is {scene.background}.",
    }
    return Truth(key, shapes.caption(scene), judge, attributes)


def _of_emoji(key: str, about: dict[str, Any]) -> Truth:
    scene = emoji.scene_from_json(about)

    def judge(text: str) -> Judged:
        if emoji.parse(text) is None:
            return Judged(0, 0, len(scene.sprites))
        found = [right for fact, right in emoji.judge(text, scene).items() if fact != "all"]
        return Judged(sum(found), len(found) - sum(found), 0)

    first = scene.sprites[0]
    attributes = {
        "where": f"The {first.name} is at the {first.place}.",
        "background": f"The background is {scene.background}.",
    }
    return Truth(key, emoji.describe(scene), judge, attributes)


def _of_flags(key: str, about: dict[str, Any]) -> Truth:
    colours = set(about["colours"])

    def judge(text: str) -> Judged:
        told = set(flag_captions.colours_in(text))
        return Judged(len(told & colours), len(told - colours), len(colours - told))

    said = ", ".join(sorted(colours))
    attributes = {"colour": f"Its colours are {said}.", "layout": f"Its layout is {about['layout']}."}
    return Truth(key, f"This {about['layout']} flag is {said}.", judge, attributes)


_WORLDS: Mapping[str, Callable[[str, dict[str, Any]], Truth]] = {
    "groups": truth_of_shapes,
    "sprites": _of_emoji,
    "colours": _of_flags,
}
"""By a field that the truth of this world alone has."""


class Truths:
    """The truth of all samples of some tars, by key and by the image's digest."""

    def __init__(self, tars: Iterable[str | Path]) -> None:
        self.by_key: dict[str, Truth] = {}
        self.by_image: dict[str, Truth] = {}
        for tar in tars:
            for key, members in _samples(tar):
                self._add(key, members)
        if not self.by_key:
            raise UserError("oracle: no sample of the tars has a truth: a json member as recap.worlds writes it.")

    def _add(self, key: str, members: Mapping[str, bytes]) -> None:
        about = json.loads(members.get("json", b"{}"))
        world = next((make for field, make in _WORLDS.items() if field in about), None)
        if world is None:
            return
        self.by_key[key] = truth = world(key, about)
        for extension, data in members.items():
            if extension not in ("json", "txt"):
                self.by_image[hashlib.sha256(data).hexdigest()] = truth

    def find(self, image: bytes | None, text: str) -> Truth | None:
        """By the image, else by the first word of the text that is a key, or a child's (`k#3`)."""
        if image is not None:
            return self.by_image.get(hashlib.sha256(image).hexdigest())
        words = (word.strip(".") for word in _WORD.findall(text))
        names = (name for word in words for name in (word, word.rpartition("#")[0]))
        return next((self.by_key[name] for name in names if name in self.by_key), None)


def _samples(tar: str | Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and members of a tar as recap.worlds writes them: whole, a sample's members one after another."""
    with tarfile.open(tar) as file:
        for key, group in itertools.groupby(file, lambda member: member.name.partition(".")[0]):
            yield key, {m.name.partition(".")[2]: found.read() for m in group if (found := file.extractfile(m))}
