"""Synthetic flags with captions in a small grammar: training data for the tiny captioner, without any real
flag.

    python -m recap.worlds.flags OUT --shards 2 --samples 500 --seed 0 [--alt]

A flag is a `Scene` (facts, `flag_scenes`), drawn by `flag_drawing.draw` and told by `flag_captions.describe`;
`parse` there reads the facts back out of a caption, ours or a human's. The grammar mimics the flag
descriptions of The World Factbook:

    This flag has three horizontal bands of black (top), red, and green. The red band is edged in white.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path

from PIL import Image

from hpc.base.errors import Parser
from recap.worlds.flag_captions import describe, parse
from recap.worlds.flag_drawing import draw
from recap.worlds.flag_scenes import COLOURS, Scene, new_scene
from recap.worlds.tars import write_tar


def sample(seed: int, index: int) -> tuple[Scene, Image.Image, str]:
    """The index-th flag of a seed: its facts, a 128 px wide picture, its caption.

    Independent of every other index.
    """
    rng = random.Random(f"flags/{seed}/{index}")
    scene = new_scene(rng)
    picture = draw(scene, rng)
    small = picture.resize((128, picture.height // 2), Image.Resampling.BOX)
    return scene, small, describe(scene)


BOILERPLATE = ("free flag download", "buy flags online, best price", "IMG_{} jpg", "stock vector {} royalty free")


def alt_text(scene: Scene, rng: random.Random) -> str:
    """A text as the web has it: one colour at most of the flag (60 %), nothing of it (20 %), a wrong colour (20 %)."""
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(BOILERPLATE).format(rng.randint(100, 9999))
    own = sorted(parse(describe(scene)).colours)
    colours = own if kind < 0.8 else sorted(set(COLOURS) - set(own))
    return f"{rng.choice(colours)} flag" if rng.random() < 0.5 else f"flag, {rng.choice(colours)}, free vector"


def write_shard(path: Path, seed: int, first: int, samples: int, *, alt: bool = False) -> None:
    """One webdataset tar of samples first ...: png, txt (caption or alt-text), json (layout, bands, colours)."""

    def files(index: int) -> dict[str, bytes]:
        scene, picture, caption = sample(seed, index)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        about = {"layout": scene.layout, "bands": scene.bands, "colours": sorted(parse(caption).colours)}
        text = alt_text(scene, random.Random(f"alt/{seed}/{index}")) if alt else caption
        return {"png": buffer.getvalue(), "txt": text.encode(), "json": json.dumps(about).encode()}

    with path.open("wb") as file:
        write_tar(file, ((f"{index:08d}", files(index)) for index in range(first, first + samples)))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--samples", type=int, default=500, help="per shard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alt", action="store_true", help="texts are noisy alt-texts instead of captions")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for shard in range(arguments.shards):
        first, count = shard * arguments.samples, arguments.samples
        write_shard(arguments.out / f"{shard:05d}.tar", arguments.seed, first, count, alt=arguments.alt)


if __name__ == "__main__":
    main()
