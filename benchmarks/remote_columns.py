"""Readers of a column on an object store whose every answer takes 50 ms: eight side by side beside one alone.

    python -m benchmarks.remote_columns       blocks a second of one and of eight readers; a part of benchmarks.scale

Each block lies in another file, which is asked for whole, as of shards of 10,000 captions. A request costs some 3 ms of
Python (signing, parsing), so that the ratio is eight at most, and less where a machine has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.slow_store import started
from benchmarks.targets import Target
from hpc.base.no_pandas import without_pandas
from hpc.operator import Shard
from recap.data.column import ColumnConfig, ColumnOfFiles
from recap.data.columns import open_column
from recap.data.manifest import Manifest, write

ROOT = Path(__file__).resolve().parent.parent
LATENCY_S, READERS, ROWS, BLOCKS, ROUNDS = 0.05, 8, 1024, 30, 3


def rates(folder: Path) -> dict[str, float]:
    """Blocks a second of one and of `READERS` readers: the best of some rounds of each."""
    keys = [f"{at:09d}" for at in range(ROWS)]
    texts = [random.Random(key).randbytes(100).hex() for key in keys]
    (folder / "recap").mkdir()
    first = folder / "recap/00000.parquet"
    pq.write_table(pa.table({"key": keys, "caption": texts, "status": ["ok"] * ROWS}), first, row_group_size=512)
    shards = [Shard(f"{number:05d}", f"/tars/{number:05d}.tar", 0) for number in range(1 + READERS * BLOCKS)]
    for shard in shards[1:]:
        os.link(first, folder / f"recap/{shard.id}.parquet")
    config, found = ColumnConfig(folder="s3://corpus/recap", field="caption"), {"one": 0.0, "side by side": 0.0}
    made = open_column("recap", config)
    assert isinstance(made, ColumnOfFiles)
    write(folder / "recap.arrow", made.manifest(shards))
    for _ in range(ROUNDS):
        for name, readers in (("one", 1), ("side by side", READERS)):
            column = open_column("recap", config, Manifest(folder / "recap.arrow"))
            column.read(shards[0], 0, keys[:512], [])
            begun = time.monotonic()
            with ThreadPoolExecutor(readers) as pool:
                wanted = shards[1 : 1 + BLOCKS * readers]
                read = list(pool.map(lambda shard, c=column: c.read(shard, 0, keys[:512], []).values[0], wanted))
            found[name] = max(found[name], len(wanted) / (time.monotonic() - begun))
            assert read == [texts[0]] * len(wanted)
    return found


def measured() -> dict[str, float]:
    """`rates`, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), LATENCY_S) as url:
        command = [sys.executable, "-m", "benchmarks.remote_columns", "--folder", folder]
        there = {**kept, **environment, "AWS_ENDPOINT_URL": url}
        done = subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def targets(found: dict[str, float]) -> list[Target]:
    name = f"{READERS} readers of a column on a store that takes {LATENCY_S * 1000:.0f} ms, beside one"
    return [Target(name, found["side by side"] / found["one"], 6, "x", most=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    found = rates(arguments.folder) if arguments.folder else measured()
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    without_pandas()
    main()
