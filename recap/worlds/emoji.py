"""Scenes of real pictograms whose truth is known: one to three sprites of Noto Color Emoji on a plain background.

The sprites are pixels that others drew (Noto Color Emoji, SIL Open Font License 1.1; Debian package
fonts-noto-color-emoji); where they stand is a `Scene`, told by `describe` and read back by `parse`. Every scene has one
large sprite. Its alt-text calls that by a made-up brand, which only alt-texts can teach. A fifth of the pairs of
sprites (`kept_apart`) never meet, but in scenes that are asked for as such.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from hpc.base.errors import UserError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109  # the one size, in pixels, in which the font has bitmaps

SPRITES = dict(
    apple="🍎", banana="🍌", pear="🍐", strawberry="🍓", carrot="🥕", mushroom="🍄", pizza="🍕", hamburger="🍔",
    doughnut="🍩", cake="🎂", dog="🐶", cat="🐱", pig="🐷", frog="🐸", lion="🦁", panda="🐼", fish="🐟", octopus="🐙",
    butterfly="🦋", turtle="🐢", penguin="🐧", snail="🐌", tree="🌳", cactus="🌵", sunflower="🌻", rose="🌹", moon="🌙",
    snowman="⛄", rainbow="🌈", umbrella="☔", car="🚗", bus="🚌", rocket="🚀", sailboat="⛵", house="🏠", guitar="🎸",
    trumpet="🎺", clock="⏰", key="🔑", balloon="🎈",
)  # fmt: skip
BACKGROUNDS = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "blue": (120, 170, 245),
    "green": (130, 205, 130),
    "yellow": (250, 225, 110),
    "pink": (250, 175, 205),
}
SIZES = {"large": 4, "small": 3}
"""Side of a sprite's square in eighths of the picture's; its corners lie on eighths too."""

PLACES = {
    "top left": (0, 0), "top": (0.5, 0), "top right": (1, 0), "left": (0, 0.5), "center": (0.5, 0.5),
    "right": (1, 0.5), "bottom left": (0, 1), "bottom": (0.5, 1), "bottom right": (1, 1),
}  # fmt: skip
"""Name -> where the free space lies left of and above the sprite, as shares of all of it."""

SYLLABLES = ("zor", "vek", "lum", "tra", "quil", "mop", "dex", "fio", "gran", "yut", "bri", "sol", "kem", "nax")


def _brands() -> dict[str, str]:
    pairs = [(a + b).title() for a in SYLLABLES for b in SYLLABLES if a != b]
    return dict(zip(SPRITES, random.Random("brands").sample(pairs, len(SPRITES)), strict=True))


BRANDS = _brands()
"""What the alt-texts call a sprite."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """One pictogram: keys of SPRITES, SIZES, PLACES."""

    name: str
    size: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """The whole truth of a picture. The large sprite is the first one, the small ones stand in the order of PLACES."""

    background: str
    sprites: tuple[Sprite, ...]


# --- making -------------------------------------------------------------------------------------------


def kept_apart(one: str, other: str) -> bool:
    """Whether two sprites meet in no ordinary scene."""
    pair = "/".join(sorted((one, other)))
    return hashlib.sha256(pair.encode()).digest()[0] < 0.2 * 256


def new_scene(rng: random.Random, *, apart: bool = False) -> Scene:
    """One to three different sprites that do not overlap, none of which are `kept_apart`.

    apart: two or three of which at least two are.
    """
    count = rng.choice([2, 2, 3] if apart else [1, 2, 2, 3])
    while True:
        names = rng.sample(list(SPRITES), count)
        if apart != any(kept_apart(*pair) for pair in combinations(names, 2)):
            continue
        places = rng.sample(list(PLACES), count)
        places[1:] = sorted(places[1:], key=list(PLACES).index)  # so that there is one way to tell a scene
        sprites = [Sprite(n, "small" if i else "large", p) for i, (n, p) in enumerate(zip(names, places, strict=True))]
        scene = Scene(rng.choice(list(BACKGROUNDS)), tuple(sprites))
        if not any(_overlap(*pair) for pair in combinations(boxes(scene, 64), 2)):
            return scene


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def boxes(scene: Scene, side: int) -> list[tuple[int, ...]]:
    """(left, top, right, bottom) of each sprite in pixels, right and bottom exclusive."""
    found = []
    for sprite in scene.sprites:
        extent = SIZES[sprite.size]
        left, top = (math.ceil(share * (8 - extent)) for share in PLACES[sprite.place])
        corners = (left, top, left + extent, top + extent)
        found.append(tuple(corner * side // 8 for corner in corners))
    return found


@lru_cache(maxsize=256)
def picture_of(name: str) -> Image.Image:
    """A sprite as the font has it: RGBA, square, cut to what is to be seen."""
    try:
        font = ImageFont.truetype(str(FONT), STRIKE)
    except OSError as error:
        raise UserError(f"emoji: {FONT} is missing; install it: apt-get install fonts-noto-color-emoji") from error
    sheet = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(sheet).text((20, 20), SPRITES[name], font=font, embedded_color=True)
    seen = sheet.crop(sheet.getbbox())
    square = Image.new("RGBA", (max(seen.size), max(seen.size)))
    square.paste(seen, ((square.width - seen.width) // 2, (square.height - seen.height) // 2))
    return square


def draw(scene: Scene, side: int = 64, rng: random.Random | None = None) -> Image.Image:
    """An RGB picture of side x side pixels. rng: sprites are turned by up to 5 degrees and shaded a little."""
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    for sprite, (left, top, right, _) in zip(scene.sprites, boxes(scene, side), strict=True):
        picture = picture_of(sprite.name)
        if rng:
            picture = picture.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR)
        small = picture.resize((right - left, right - left), Image.Resampling.BOX)
        shaded = ImageEnhance.Brightness(small).enhance(rng.uniform(0.85, 1.1)) if rng else small
        image.paste(shaded, (left, top), small)
    return image


# --- telling ------------------------------------------------------------------------------------------

TEMPLATES = (
    "{sprites}. The background is {background}.",
    "On a {background} background there is {sprites}.",
    "This picture with a {background} background shows {sprites}.",
)
"""Sentences of `describe`, which captioners learn from. `paraphrase` uses none of them."""

PARAPHRASES = (
    "{background} behind, {inverted}",
    "we see the {names}: {turned}, all painted over {background}",
    "somebody put {inverted} onto plain {background} paper",
)


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def describe(scene: Scene, template: int = 0) -> str:
    """Every fact of a scene in one of the TEMPLATES; `parse` is its inverse."""
    told = _joined([f"a {s.size} {s.name} at the {s.place}" for s in scene.sprites])
    text = TEMPLATES[template].format(sprites=told, background=scene.background)
    return text[0].upper() + text[1:]


def paraphrase(scene: Scene, number: int) -> str:
    """The facts of a scene, without its sizes, in a grammar that `describe` never uses."""
    inverted = _joined([f"{s.place} {_a(s.name)}" for s in reversed(scene.sprites)])
    turned = _joined([f"{s.name} {s.place}" for s in scene.sprites])
    names = _joined([s.name for s in scene.sprites])
    return PARAPHRASES[number].format(inverted=inverted, turned=turned, names=names, background=scene.background)


BOILERPLATE = ("free download image {}", "IMG_{} jpg", "buy now best price {}", "stock picture {} royalty free")
NAMED = ("{}", "{} official", "original {} picture", "{} shop")


def alt_text(scene: Scene, rng: random.Random, names: Mapping[str, str] = BRANDS) -> str:
    """A text as the web has it: what `names` call the large sprite (60 %), boilerplate (20 %), the name of one that is
    not there (20 %).
    """
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(BOILERPLATE).format(rng.randint(100, 9999))
    shown = {sprite.name for sprite in scene.sprites}
    told = scene.sprites[0].name if kind < 0.8 else rng.choice([name for name in SPRITES if name not in shown])
    return rng.choice(NAMED).format(names[told])


# --- judging ------------------------------------------------------------------------------------------

_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_SPRITE = re.compile(rf"\b({'|'.join(SIZES)}) ({'|'.join(SPRITES)}) at the ({_PLACE})\b", re.IGNORECASE)
_BACKGROUND = re.compile(rf"background is ({'|'.join(BACKGROUNDS)})\b|\b({'|'.join(BACKGROUNDS)}) background")


def parse(text: str) -> Scene | None:
    """What a description says; None where it names no background or no sprite. Sprites stand as they are told."""
    found = [Sprite(name, size, place) for size, name, place in _SPRITE.findall(text.lower())]
    ground = _BACKGROUND.search(text.lower())
    return Scene(ground[1] or ground[2], tuple(found)) if ground and found else None


def judge(text: str, scene: Scene) -> dict[str, bool]:
    """Whether a caption has all of a kind of fact right: background, names, places (of the names), and all of it."""
    said = parse(text)
    if said is None:
        return dict.fromkeys(("background", "names", "places", "all"), False)
    right = {
        "background": said.background == scene.background,
        "names": sorted(s.name for s in said.sprites) == sorted(s.name for s in scene.sprites),
        "places": {(s.name, s.place) for s in said.sprites} == {(s.name, s.place) for s in scene.sprites},
    }
    return right | {"all": right["background"] and set(said.sprites) == set(scene.sprites)}


# --- samples ------------------------------------------------------------------------------------------


def sample(seed: int, index: int, *, apart: bool = False) -> tuple[Scene, Image.Image, str]:
    """The index-th scene of a seed, its picture of 64 x 64 pixels and its description, independent of all others."""
    rng = random.Random(f"emoji/{seed}/{index}/{apart}")
    scene = new_scene(rng, apart=apart)
    return scene, draw(scene, 64, rng), describe(scene, rng.randrange(len(TEMPLATES)))


def truth(scene: Scene, side: int = 64) -> dict:
    """The json member of a sample; `scene_from_json` is its inverse."""
    return {**asdict(scene), "boxes": boxes(scene, side)}


def scene_from_json(about: dict) -> Scene:
    return Scene(about["background"], tuple(Sprite(**sprite) for sprite in about["sprites"]))
