"""What reading each kind of input costs: samples a second of a core, against the library that people read it with, and
memory, which must not grow with the samples.

    python -m benchmarks.inputs                    a table; some minutes
    python -m benchmarks.inputs --check            exit 1 where the peer is faster or memory grows
    python -m benchmarks.inputs --json out.json    the numbers, too

Tars against webdataset; parquet, save_to_disk and folders of images with metadata.jsonl against `datasets`, which does
not decode. Each reads an image's bytes and its text; planning is counted, imports are not. CPU seconds of all threads
count, so that a busy machine says the same. Each reading is a process of its own.
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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.commands import anonymous_mb
from benchmarks.targets import Target, show
from hpc.base.errors import Parser
from recap.data.inputs import DataConfig, list_shards
from recap.data.kinds import samples_of
from recap.data.tars import Sample
from recap.worlds.tars import write_tar

ROOT = Path(__file__).resolve().parent.parent
SHARD = 1000  # samples
BYTES = 50_000  # of an image
GROUP = 100  # rows of a row group: what `datasets` writes for images
LEAST_S = 1.0  # CPU seconds that a process reads, all samples again and again: shorter ones are noise
GROWTH_MB = 32.0  # that four times the samples may take more
KINDS = ("tar", "parquet", "arrow", "folder")

# --- the corpus -------------------------------------------------------------------------------


def samples(shard: int) -> Iterator[tuple[str, bytes, str]]:
    rng = random.Random(shard)
    for number in range(SHARD):
        yield f"{shard:03d}{number:06d}", b"\xff\xd8\xff" + rng.randbytes(BYTES - 3), f"text {number} of shard {shard}"


def build(folder: Path, kind: str, shards: int) -> None:
    """The same samples in each kind."""
    folder.mkdir(parents=True)
    lines = []
    for shard in range(shards):
        rows = list(samples(shard))
        if kind == "tar":
            with (folder / f"{shard:05d}.tar").open("wb") as file:
                write_tar(file, ((key, {"jpg": image, "txt": text.encode()}) for key, image, text in rows))
        elif kind == "folder":
            (folder / str(shard)).mkdir()
            for key, image, text in rows:
                (folder / f"{shard}/{key}.jpg").write_bytes(image)
                lines.append(json.dumps({"file_name": f"{shard}/{key}.jpg", "text": text}))
        else:
            _write_table(folder, kind, shard, shards, rows)
    if kind == "folder":
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _write_table(folder: Path, kind: str, shard: int, shards: int, rows: list[tuple[str, bytes, str]]) -> None:
    import datasets

    made = [{"image": {"bytes": image, "path": f"{key}.jpg"}, "text": text} for key, image, text in rows]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = pa.Table.from_pylist(made, schema=features.arrow_schema)
    if kind == "parquet":
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=GROUP)
        return
    name = f"data-{shard:05d}-of-{shards:05d}.arrow"
    with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=SHARD)
    if shard == shards - 1:
        files = [{"filename": f"data-{n:05d}-of-{shards:05d}.arrow"} for n in range(shards)]
        state: dict[str, object] = {
            "_data_files": files,
            "_fingerprint": "0",
            "_format_columns": None,
            "_format_kwargs": {},
        }
        state |= {"_format_type": None, "_output_all_columns": False, "_split": None}
        (folder / "state.json").write_text(json.dumps(state))
        datasets.DatasetInfo(features=features).write_to_directory(str(folder))


# --- readers ----------------------------------------------------------------------------------


def ours(folder: Path) -> Iterator[tuple[bytes, object]]:
    data = DataConfig(shards=[str(folder)])
    data.lists = folder.with_name(f"{folder.name}.lists")
    shards = list_shards(data)
    data.frozen.write(data.lists)
    for shard in shards:
        for found in samples_of(shard, data.wanted(["txt"])):
            assert isinstance(found, Sample), found
            yield found.members["jpg"], found.members["txt"]


def webdataset(folder: Path) -> Iterator[tuple[bytes, object]]:
    from webdataset import WebDataset

    for sample in WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False):
        yield sample["jpg"], sample["txt"]


def datasets_reader(folder: Path, kind: str) -> Iterator[tuple[bytes, object]]:
    import datasets

    if kind == "arrow":
        found = datasets.load_from_disk(str(folder))
    else:
        what, given = ("parquet", {"data_files": f"{folder}/*.parquet"}) if kind == "parquet" else ("imagefolder", {})
        given |= {"data_dir": str(folder)} if kind == "folder" else {}
        found = datasets.load_dataset(what, **given, streaming=True, split="train")
    for row in found.cast_column("image", datasets.Image(decode=False)):
        data = row["image"]["bytes"]
        yield data if data is not None else Path(row["image"]["path"]).read_bytes(), row["text"]


def reader(kind: str, who: str) -> Callable[[Path], Iterator[tuple[bytes, object]]]:
    if who == "ours":
        return ours
    return webdataset if kind == "tar" else lambda folder: datasets_reader(folder, kind)


def read(folder: Path, kind: str, who: str) -> None:
    """Runs in the process that is measured: prints samples, CPU seconds and the most MB of anonymous memory."""
    made = reader(kind, who)
    next(made(folder))  # with all that is imported on the way, which is no cost of reading
    memory, cpu, count = anonymous_mb(), time.process_time(), 0
    most = memory
    while time.process_time() - cpu < LEAST_S:
        for image, text in made(folder):
            assert len(image) == BYTES and text
            count += 1
            if count % 200 == 0:
                most = max(most, anonymous_mb())
    spent = time.process_time() - cpu
    sys.stdout.write(json.dumps({"samples": count, "cpu_s": spent, "mb": most - memory}) + "\n")


# --- measuring --------------------------------------------------------------------------------


def in_process(folder: Path, kind: str, who: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.inputs", "--process", f"{kind} {who}", "--work", str(folder)]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder.with_name("cache")), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(work: Path, kind: str, shards: int, rounds: int) -> dict[str, float]:
    """What `read` prints, from a process of its own."""
    for name, count in (("few", max(shards // 4, 1)), ("many", shards)):
        build(work / kind / name, kind, count)
    found: dict[str, float] = {}
    for _ in range(rounds):
        for who in ("ours", "peer"):
            one = in_process(work / kind / "many", kind, who)
            assert one["samples"] and one["samples"] % (shards * SHARD) == 0
            found[who] = max(found.get(who, 0.0), one["samples"] / one["cpu_s"])
            found[f"{who}_mb"] = one["mb"]
    found["few_mb"] = in_process(work / kind / "few", kind, "ours")["mb"]
    return found


def targets(found: dict[str, dict[str, float]]) -> list[Target]:
    checks = []
    for kind, rates in found.items():
        peer = "webdataset" if kind == "tar" else "datasets"
        checks.append(
            Target(f"{kind}: samples/s a core, times {peer}'s", rates["ours"] / rates["peer"], 1.0, "", False)
        )
        grown = rates["ours_mb"] - rates["few_mb"]
        checks.append(Target(f"{kind}: memory of four times the samples, more", grown, GROWTH_MB, "MB"))
    return checks


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.inputs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, default=4, help=f"of {SHARD} samples of {BYTES // 1000} kB (default: 4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where files are written")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.process:
        read(args.work, *args.process.split())
        return 0
    found: dict[str, dict[str, float]] = {}
    for kind in args.kinds.split(","):
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            found[kind] = measure(Path(folder), kind, args.shards, args.rounds)
    console = Console(highlight=False)
    table = Table("", "samples/s a core", "peer's", "MB", "peer's", title="reading", box=None)
    for kind, rates in found.items():
        numbers = (rates[name] for name in ("ours", "peer", "ours_mb", "peer_mb"))
        table.add_row(kind, *(f"{number:,.0f}" for number in numbers))
    console.print(table)
    checks = targets(found)
    show(console, checks)
    if args.json:
        judged = [asdict(check) | {"met": check.met} for check in checks]
        facts = {"kinds": found, "targets": judged, "date": time.strftime("%Y-%m-%d")}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if args.check and not all(check.met for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
