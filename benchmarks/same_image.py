"""What it costs that a reader compares columns with the images they were made from (recap.data.same_image).

    python -m benchmarks.same_image [--check]      half a minute; a share of the CPU of CLIP's reader at 224 px

A reader reads a block of the tar, parses it, reads the columns' rows, and decodes the images. With digests it reads one
more column chunk a block, hashes all images of the first block that it meets of a shard, and one of every other.
`--check` exits 1 where that is more than 2 % for shards of 10,000 images (img2dataset's).
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.clip import photograph
from hpc.base.errors import Parser
from recap.clip.images import training_crop
from recap.data.blocks import BLOCK
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Reader
from recap.data.streams import StreamPlan
from recap.worlds.tars import write_tar

TARGET = 0.02


def corpus(folder: Path) -> None:
    """One tar of two blocks of photographs, and its captions with and without digests."""
    rng = np.random.default_rng(0)
    pictures = [photograph(rng) for _ in range(64)]
    keys = [f"{i:09d}" for i in range(2 * BLOCK)]
    (folder / "tars").mkdir()
    with (folder / "tars/00000.tar").open("wb") as file:
        write_tar(file, ((key, {"jpg": pictures[i % 64]}) for i, key in enumerate(keys)))
    table = pa.table({"key": keys, "text": ["a red house near the sea, and a man who looks at it " * 4] * len(keys)})
    digests = [hashlib.sha256(pictures[i % 64]).hexdigest() for i in range(len(keys))]
    for name, made in (("bare", table), ("digests", table.append_column("image_sha256", [digests]))):
        (folder / name).mkdir()
        pq.write_table(made, folder / name / "00000.parquet", row_group_size=BLOCK, compression="zstd")


def seconds(work: Callable[[], object], repeats: int = 9) -> float:
    """CPU time, the median."""
    found = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        found.append(time.process_time() - before)
    return statistics.median(found)


def measure(folder: Path) -> dict[str, float]:
    """CPU seconds of one block: read with its captions, decoded, and compared as a shard's first and as another."""
    plan = StreamPlan(Index.open_or_make(None, list_shards(DataConfig(shards=[str(folder / "tars")]))), 0, 1)

    def reader(name: str) -> Reader:
        column = open_column("re_caption", ColumnConfig(folder=str(folder / name)))
        return Reader(plan, {"re_caption": column}, threads=1)

    bare, met = reader("bare"), reader("digests")
    samples = bare._read(0, 0, BLOCK)
    met._read(0, 0, BLOCK)
    read = seconds(lambda: bare._read(1, 0, BLOCK))

    def first() -> None:
        met._same._met.clear()
        met._read(1, 0, BLOCK)

    return {
        "read": read,
        "decode": seconds(lambda: [training_crop(s.members["jpg"], 224, 0, 0, s.key) for s in samples], 1),
        "first": seconds(first) - read,
        "other": max(seconds(lambda: met._read(1, 0, BLOCK)) - read, 0.0),
    }


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 where the target is missed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus(Path(folder))
        cost = measure(Path(folder))
    block = cost["read"] + cost["decode"]
    sys.stdout.write(f"a block of {BLOCK}: read {cost['read']:.3f} s, decode {cost['decode']:.3f} s of CPU time\n")
    sys.stdout.write(f"compared: a shard's first {cost['first'] * 1e3:.0f} ms, another {cost['other'] * 1e3:.1f} ms\n")
    price = 0.0
    for images in (1_000, 10_000):
        blocks = images / BLOCK
        price = (cost["first"] + (blocks - 1) * cost["other"]) / (blocks * block)
        sys.stdout.write(f"shards of {images:,} images: {price:.2%} of the reader's CPU time (target: {TARGET:.0%})\n")
    if given.check and price > TARGET:
        sys.exit(1)


if __name__ == "__main__":
    main()
