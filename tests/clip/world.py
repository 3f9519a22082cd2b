"""A small world for training: coloured squares on colours, texts that tell of them, a column of other words."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recap.worlds.tars import write_tar

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210), "white": (250, 250, 250)}
PLACES = {"left": (2, 12), "right": (20, 12), "top": (11, 2), "bottom": (11, 20)}


def sample(rng: random.Random) -> tuple[bytes, str, str]:
    ground, square = rng.sample(sorted(COLOURS), 2)
    place = rng.choice(sorted(PLACES))
    image = Image.new("RGB", (32, 32), COLOURS[ground])
    image.paste(COLOURS[square], (*PLACES[place], PLACES[place][0] + 10, PLACES[place][1] + 10))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), f"a {square} cross", f"the photo is {ground} with a {square} star {place}"


def write_world(folder: Path, shards: int = 3, samples: int = 200, broken: int = 0) -> None:
    """tars/<n>.tar with png and txt, and recap/<n>.parquet beside them; every `broken`-th image cannot be decoded."""
    (folder / "tars").mkdir(parents=True)
    (folder / "recap").mkdir()
    for shard in range(shards):
        rng = random.Random(f"clip/{shard}")
        made = [(f"{shard:03d}{i:05d}", *sample(rng)) for i in range(samples)]
        with (folder / "tars" / f"{shard:03d}.tar").open("wb") as file:
            write_tar(
                file,
                (
                    (key, {"png": b"junk" if broken and i % broken == 3 else image, "txt": alt.encode()})
                    for i, (key, image, alt, _) in enumerate(made)
                ),
            )
        table = pa.table({"key": [m[0] for m in made], "caption": [m[3] for m in made], "status": ["ok"] * samples})
        pq.write_table(table, folder / "recap" / f"{shard:03d}.parquet", row_group_size=512)
