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
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from hpc.base.errors import Parser
from recap.worlds.shape_claims import judge
from recap.worlds.shape_scenes import COUNTS, Group, Scene, boxes, draw, new_scene, plural
from recap.worlds.tars import write_tar

# ---------------------------------------------------------------- telling


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
