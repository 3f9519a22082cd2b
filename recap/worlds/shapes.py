"""The shapes world: coloured shapes whose truth is known, with captions, noisy alt-texts, boxes, an oracle.

    python -m recap.worlds.shapes OUT --shards 4 --samples 500 --seed 0 [--size 96] [--mismatch 0.3]

A picture holds one to three groups; a group is `count` shapes of one colour, kind and size at one of nine
places. Nothing in here looks like a photo: what is measured on it holds for it alone.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

from PIL import Image, ImageDraw

from hpc.errors import Parser
from recap.worlds.tars import write_tar

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


@dataclass(frozen=True, slots=True)
class Claim:
    """What a caption says about one group; None where it says nothing."""

    count: int | None
    size: str | None
    colour: str | None
    kind: str
    place: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One stated fact and what is true.

    `truth` is None where the caption speaks of a group that is not there.
    """

    fact: str
    said: str
    truth: str | None

    @property
    def right(self) -> bool:
        return self.said == self.truth


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts on what was said, and the groups that were not spoken of."""

    verdicts: tuple[Verdict, ...]
    unsaid: tuple[Group, ...]

    @property
    def wrong(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.right]

    @property
    def correct(self) -> bool:
        """Something was said and nothing of it is wrong."""
        return bool(self.verdicts) and not self.wrong

    @property
    def complete(self) -> bool:
        return self.correct and not self.unsaid


# ---------------------------------------------------------------- making


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


# ---------------------------------------------------------------- telling


def plural(kind: str) -> str:
    return f"{kind}es" if kind == "cross" else f"{kind}s"


def _named(group: Group, *, size: bool) -> str:
    words = [group.size] * size + [group.colour, group.kind if group.count == 1 else plural(group.kind)]
    phrase = " ".join(words)
    if group.count > 1:
        return f"{COUNTS[group.count]} {phrase}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def caption(scene: Scene, detail: str = "detailed") -> str:
    """ "short": counts, colours and kinds in one phrase.

    "detailed": size and place too, and the background.
    """
    if detail == "short":
        return " and ".join(_named(group, size=False) for group in scene.groups)
    if detail != "detailed":
        raise ValueError(f"detail is 'short' or 'detailed', not {detail!r}")
    sentences = []
    for group in scene.groups:
        phrase = _named(group, size=True)
        sentences.append(f"{phrase[0].upper()}{phrase[1:]} {'is' if group.count == 1 else 'are'} in the {group.place}.")
    sentences.append(f"The background is {scene.background}.")
    return " ".join(sentences)


def alt_text(scene: Scene, rng: random.Random, mismatch: float) -> tuple[str, bool]:
    """A text as the web has it, and whether it belongs to another picture (with probability `mismatch`)."""
    wrong = rng.random() < mismatch
    told = scene
    while wrong and (told is scene or judge(caption(told, "short"), scene).correct):
        told = new_scene(rng)
    group = rng.choice(told.groups)
    look = f"{group.colour} {group.kind}"
    texts = [
        f"{look} clipart",
        f"{look.title()} - Free Vector | Shapes4U",
        f"{look} stock photo #{rng.randint(10000, 99999)}",
        f"IMG_{rng.randint(1000, 9999)} {look}",
        caption(told, "short"),
        f"Buy {look} online, best price!",
    ]
    return rng.choice(texts), wrong


# ---------------------------------------------------------------- judging

_KIND = "|".join(f"{plural(kind)}|{kind}" for kind in KINDS)
_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_CLAIM = re.compile(
    rf"\b(?:(?P<count>an?|one|two|three)\s+)?(?:(?P<size>{'|'.join(SIZES)})\s+)?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)})\s+)?(?P<kind>{_KIND})\b"
    rf"(?:\s+(?:is|are)?\s*(?:in|at)\s+the\s+(?P<place>{_PLACE})\b)?",
    re.IGNORECASE,
)
_SINGULAR = {plural(kind): kind for kind in KINDS}


def parse(text: str) -> list[Claim]:
    """The groups a caption speaks of.

    Exact on `caption`; on other texts, what of them follows the same words.
    """
    claims = []
    for match in _CLAIM.finditer(text):
        found = {name: value.lower() if value else None for name, value in match.groupdict().items()}
        number, kind = found["count"], found["kind"] or ""
        count = None if number is None else 1 if number in ("a", "an") else COUNTS.index(number)
        claims.append(Claim(count, found["size"], found["colour"], _SINGULAR.get(kind, kind), found["place"]))
    return claims


def _verdicts(claim: Claim, group: Group | None) -> list[Verdict]:
    said = {name: value for name, value in asdict(claim).items() if value is not None}
    return [
        Verdict(name, str(value), None if group is None else str(getattr(group, name))) for name, value in said.items()
    ]


def judge(text: str, scene: Scene) -> Judgement:
    """Which stated facts are right.

    Claims are paired with groups in the way that makes the fewest facts wrong.
    """
    claims = parse(text)
    slots: list[int | None] = [*range(len(scene.groups)), *[None] * len(claims)]
    best: tuple[int, list[Verdict], list[Group]] | None = None
    for pairing in set(permutations(slots, len(claims))) if len(claims) <= 4 else [tuple(slots[: len(claims)])]:
        verdicts = [
            verdict
            for claim, index in zip(claims, pairing, strict=True)
            for verdict in _verdicts(claim, None if index is None else scene.groups[index])
        ]
        wrong = sum(not verdict.right for verdict in verdicts)
        if best is None or wrong < best[0]:
            best = (
                wrong,
                verdicts,
                [group for index, group in enumerate(scene.groups) if index not in pairing],
            )
    assert best is not None
    ground = re.search(r"background is (\w+)", text, re.IGNORECASE)
    background = [Verdict("background", ground[1].lower(), scene.background)] if ground else []
    return Judgement((*best[1], *background), tuple(best[2]))


# ---------------------------------------------------------------- samples and shards


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and its texts. mismatched: the alt-text tells of another picture."""

    scene: Scene
    image: Image.Image
    caption: str
    alt: str
    mismatched: bool


def sample(seed: int, index: int, *, side: int = 96, mismatch: float = 0.3, detail: str = "detailed") -> Sample:
    """The index-th sample of a seed, independent of every other."""
    rng = random.Random(f"shapes/{seed}/{index}")
    scene = new_scene(rng)
    alt, mismatched = alt_text(scene, rng, mismatch)
    return Sample(scene, draw(scene, side), caption(scene, detail), alt, mismatched)


def scene_from_json(about: dict) -> Scene:
    """The scene of a sample's json member."""
    return Scene(about["background"], tuple(Group(**group) for group in about["groups"]))


def files(made: Sample) -> dict[str, bytes]:
    """Extension -> bytes: png, txt (the alt-text), json (truth, boxes, caption)."""
    buffer = io.BytesIO()
    made.image.save(buffer, "PNG")
    about = {
        "background": made.scene.background,
        "groups": [asdict(group) for group in made.scene.groups],
        "boxes": [asdict(box) for box in boxes(made.scene, made.image.width)],
        "caption": made.caption,
        "mismatched": made.mismatched,
    }
    return {
        "png": buffer.getvalue(),
        "txt": made.alt.encode(),
        "json": json.dumps(about, sort_keys=True).encode(),
    }


def write_shard(
    path: Path,
    seed: int,
    first: int,
    samples: int,
    *,
    side: int = 96,
    mismatch: float = 0.3,
    detail: str = "detailed",
) -> None:
    """One webdataset tar of samples first .. first+samples-1; the same arguments give the same bytes."""
    made = (
        (f"{index:08d}", files(sample(seed, index, side=side, mismatch=mismatch, detail=detail)))
        for index in range(first, first + samples)
    )
    with path.open("wb") as file:
        write_tar(file, made)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--samples", type=int, default=500, help="per shard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--mismatch", type=float, default=0.3, help="share of alt-texts that tell of another picture")
    parser.add_argument(
        "--detail", choices=["short", "detailed"], default="detailed", help="of the caption in the json"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for shard in range(arguments.shards):
        write_shard(
            arguments.out / f"{shard:05d}.tar",
            arguments.seed,
            shard * arguments.samples,
            arguments.samples,
            side=arguments.size,
            mismatch=arguments.mismatch,
            detail=arguments.detail,
        )


if __name__ == "__main__":
    main()
