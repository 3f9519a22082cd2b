"""What readers of columns cost the file system, by the number of shards: a training and each of its ranks, a map job
and each of its engines. Counted, so that it does not depend on the machine.

    python -m benchmarks.scale                         1,000 and 140,000 shards, some minutes
    python -m benchmarks.scale --shards 1000,1000000   10 minutes
    python -m benchmarks.scale --check                 exit 1 where a target is missed
    python -m benchmarks.scale --json results.json     the numbers, too

Trees are built in bulk: a run whose shards are all done, read as four columns under as many names, and an index of the
tars. Tars, markers and column files are names of one file each. "Merged" are four fields of one run, as
recap.data.merge makes them. "Operations" are the system calls that name a file (open,
stat, link, ...) and the listings, as strace counts them in a process of its own, less those of one that imports the
same modules and does nothing. "Alone" is a rank that finds everything out by itself, as before there were manifests.
An engine is one of a merge of these four columns, before and while it reads shards of one block each. Readers of a
column on an object store are benchmarks.remote_columns'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks import remote_columns
from benchmarks.commands import LINKS, anonymous_mb
from benchmarks.targets import Target, show
from hpc.base.errors import Parser
from hpc.base.no_pandas import without_pandas
from hpc.base.remote_files import file_system
from hpc.operator import Shard
from hpc.run import plan
from hpc.run.directory import Run
from hpc.run.ledger import bucket_of
from recap.data.column import ColumnConfig
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Joined
from recap.data.kinds.tar import scan
from recap.data.rows import RowsConfig
from recap.data.samples import JoinedDataConfig, Samples, SharedInput, shared_input
from recap.worlds.tars import write_tar

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 4
SAMPLES = 8  # of a shard
COUNTED = 10_000  # shards up to which operations that grow with them are counted: each takes longer under strace
CALLS = "%file,getdents64"
BLOCKS = 64  # read by the rank whose operations a block are counted, less those of one that reads half as many


# --- a tree -----------------------------------------------------------------------------------


def build(folder: Path, count: int) -> None:
    """Tars, a finished run over them, the index."""
    keys = [f"{i:05d}" for i in range(SAMPLES)]
    tars, run = folder / "tars", Run(folder / "run")
    tars.mkdir(parents=True)
    for number in range(count):
        if number % LINKS == 0:
            tar, statistics = folder / f"{number}.source", folder / f"{number}.statistics"
            statistics.write_text(json.dumps({"successes": SAMPLES}))
            with tar.open("wb") as file:
                write_tar(file, ((key, {"jpg": b"x" * 40, "txt": b"y"}) for key in keys))
        os.link(tar, tars / f"{number:08d}.tar")
        os.link(statistics, tars / f"{number:08d}_stats.json")
    shards = list_shards(DataConfig(shards=[str(tars)]))
    with tar.open("rb") as opened:
        blocks = scan(opened)
    Index.of((shard, blocks) for shard in shards).save(folder / "blocks.index")

    for number in range(1, COLUMNS):
        (folder / f"run{number}").symlink_to("run")
    run.make()
    identity, column = "5ca1e000", folder / "run/columns/recap/5ca1e000/all.parquet"
    column.parent.mkdir(parents=True)
    schema = pa.schema([("key", pa.string()), ("caption", pa.string())], metadata={"identity": identity * 8})
    pq.write_table(pa.table({"key": keys, "caption": ["a caption"] * SAMPLES}, schema=schema), column)
    run.new_submission(
        plan=plan.write(run.plans, shards),
        identity=identity,
        column="recap",
        code="",
        slots=1,
        source="",
        config={"cluster": {"kind": "local"}},
    )
    ledger = run.ledger(identity)
    for bucket in {bucket_of(shard.id) for shard in shards}:
        (ledger.root / bucket).mkdir(parents=True)
    for number, shard in enumerate(shards):
        if number % LINKS == 0:
            marker = folder / f"{number}.marker"
            marker.write_text(json.dumps({"file": str(column.relative_to(run.path))}))
        os.link(marker, ledger.directory(shard.id) / f"{shard.id}.g0.done")


def data_of(folder: Path, columns: int = COLUMNS, merged: bool = False) -> JoinedDataConfig:
    runs = ["run", *("run" if merged else f"run{number}" for number in range(1, columns))][:columns]
    return JoinedDataConfig(
        shards=[str(folder / "tars")], columns={f"c{n}": ColumnConfig(run=str(folder / r)) for n, r in enumerate(runs)},
        streams=1, window=1, index=str(folder / "blocks.index"),
    )  # fmt: skip


# --- one process ------------------------------------------------------------------------------


def rank(folder: Path, what: str) -> None:
    """Runs in the process that is measured: starts a rank, and prints the CPU seconds and MB of anonymous memory."""
    if what in ("nothing job", "launch", "engine", "half job", "all job"):
        sys.stdout.write(json.dumps(_job(folder, what)) + "\n")
        return
    data = data_of(folder, columns=0 if what == "shards" else COLUMNS, merged="merged" in what)
    gang: Any = SimpleNamespace(rank=0 if what in ("shards", "survey") else 1, directory=str(folder))
    memory, cpu = anonymous_mb(), time.process_time()
    if what == "list":
        assert all(shard.expected == SAMPLES for shard in list_shards(data))
    shared = shared_input(data, gang) if what not in ("nothing", "list", "alone") else None
    if what not in ("nothing", "list", "shards", "survey"):
        blocks = {"rank": 0, "alone": 0}.get(what, BLOCKS if what.startswith("all") else BLOCKS // 2)
        _start(data, shared, blocks * SAMPLES)
    sys.stdout.write(json.dumps({"cpu_s": time.process_time() - cpu, "mb": anonymous_mb() - memory}) + "\n")


def _job(folder: Path, what: str) -> dict[str, float]:
    """Runs in the process that is measured: the launch of a merge, as far as it surveys the columns, or one of its
    engines, which reads some shards."""
    from recap.data.merge import MergeConfig, MergeOperator

    file_system(str(folder))  # its import is no operation of a reader
    data, kept = data_of(folder), folder / "names.json"
    operator = MergeOperator(MergeConfig(data=RowsConfig(shards=data.shards, columns=data.columns)))
    memory, cpu = anonymous_mb(), time.process_time()
    if what == "launch":
        planned = operator.plan()
        found = {"names": operator.survey(folder / "manifests", planned), "some": [asdict(s) for s in planned[:BLOCKS]]}
        kept.write_text(json.dumps(found))
    elif what != "nothing job":
        found = json.loads(kept.read_text())
        operator.surveyed(folder / "manifests", found["names"])
        operator.column()
        for shard in found["some"][: {"engine": 0, "half job": BLOCKS // 2, "all job": BLOCKS}[what]]:
            assert len(list(operator.read(Shard(**shard)))) == SAMPLES
    return {"cpu_s": time.process_time() - cpu, "mb": anonymous_mb() - memory}


def _start(data: JoinedDataConfig, shared: SharedInput | None, samples: int) -> None:
    def prepare(sample: Joined, epoch: int) -> str | tuple[Any, ...]:
        return tuple(sample.columns.values())

    made: Samples[Any] = Samples(data, list(data.columns), 0, shared, None, 0, prepare)
    assert made.size() and made.digest()
    if samples:
        assert all(taken.value == ("a caption",) * COLUMNS for taken in made.take(0, samples))
        made.close()


def in_process(folder: Path, what: str, counted: bool = True) -> dict[str, float]:
    """A process that does `what`: its CPU seconds and memory and, if `counted`, its operations on the file system."""
    command = [sys.executable, "-m", "benchmarks.scale", "--process", what, "--work", str(folder)]
    found: dict[str, float] = {}
    with tempfile.NamedTemporaryFile() as log:
        strace = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", log.name]
        for before in ([], strace)[: 1 + counted]:  # strace slows all calls down: times are from the run without it
            done = subprocess.run([*before, *command], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            found = found or json.loads(done.stdout.splitlines()[-1])
        lines = Path(log.name).read_text().splitlines()
        calls = [line for line in lines if not any(word in line for word in ("resumed>", '"/proc/', '"/sys/'))]
        found["operations"] = (
            nan if not counted else sum(', "",' not in call for call in calls)
        )  # an fstat, of what is open
    return found


def measure(folder: Path, count: int) -> dict[str, float]:
    build(folder, count)
    idle = in_process(folder, "nothing")["operations"]
    few = count <= COUNTED
    listed, shards = in_process(folder, "list"), in_process(folder, "shards", counted=False)
    made = in_process(folder, "survey", few)
    start = in_process(folder, "rank")
    blocks = {what: in_process(folder, what)["operations"] for what in ("half", "all", "half merged", "all merged")}
    alone = in_process(folder, "alone", few)
    launch, still = in_process(folder, "launch", few), in_process(folder, "nothing job")["operations"]
    engine, half, read = (in_process(folder, what) for what in ("engine", "half job", "all job"))
    return {
        "list_operations": listed["operations"] - idle, "list_cpu_s": listed["cpu_s"],
        "rank_operations": start["operations"] - idle, "rank_cpu_s": start["cpu_s"], "rank_mb": start["mb"],
        "block_operations": 2 * (blocks["all"] - blocks["half"]) / BLOCKS,
        "merged_operations": 2 * (blocks["all merged"] - blocks["half merged"]) / BLOCKS,
        "alone_operations": alone["operations"] - idle, "alone_cpu_s": alone["cpu_s"], "alone_mb": alone["mb"],
        "survey_operations": made["operations"] - idle, "survey_cpu_s": made["cpu_s"], "survey_mb": made["mb"],
        "launch_operations": launch["operations"] - still, "launch_cpu_s": launch["cpu_s"], "launch_mb": launch["mb"],
        "engine_operations": engine["operations"] - still, "engine_cpu_s": engine["cpu_s"], "engine_mb": engine["mb"],
        "read_operations": 2 * (read["operations"] - half["operations"]) / BLOCKS,
        "column_cpu_s": (made["cpu_s"] - shards["cpu_s"]) / COLUMNS,
    }  # fmt: skip


# --- table ------------------------------------------------------------------------------------

LABELS = {
    "list_operations": "planning with statistics: operations", "list_cpu_s": "CPU, s",
    "rank_operations": "a rank's start: operations", "rank_cpu_s": "CPU, s", "rank_mb": "anonymous memory, MB",
    "block_operations": f"a block with {COLUMNS} columns: operations",
    "merged_operations": "a block, merged: operations",
    "alone_operations": "a rank's start alone: operations", "alone_cpu_s": "CPU, s", "alone_mb": "memory, MB",
    "survey_operations": "rank 0's survey, once: operations", "survey_cpu_s": "CPU, s", "survey_mb": "memory, MB",
    "column_cpu_s": "a column of it: CPU, s",
    "launch_operations": "the launch of a map job, its plan and its survey: operations", "launch_cpu_s": "CPU, s",
    "launch_mb": "memory, MB",
    "engine_operations": "the start of one of its engines: operations", "engine_cpu_s": "CPU, s",
    "engine_mb": "memory, MB", "read_operations": f"a shard of one block with {COLUMNS} columns: operations",
}  # fmt: skip


def targets(sizes: dict[int, dict[str, float]]) -> list[Target]:
    least, most = sizes[min(sizes)], sizes[max(sizes)]
    return [
        Target(
            "planning: operations for each shard more (one stat, and its statistics are read)",
            (most["list_operations"] - least["list_operations"]) / max(max(sizes) - min(sizes), 1), 2.1, "",
        ),
        Target(
            f"a rank's start at {max(sizes):,} shards: operations more than at {min(sizes):,}",
            most["rank_operations"] - least["rank_operations"], 0, "",
        ),
        Target("CPU", most["rank_cpu_s"], 1, "s"),
        Target("anonymous memory", most["rank_mb"], 50, "MB"),
        Target(f"a block with {COLUMNS} columns: operations", most["block_operations"], 10, ""),
        Target("the same, merged: operations", most["merged_operations"], 4, ""),
        Target(
            f"a map job's engine's start at {max(sizes):,} shards: operations more than at {min(sizes):,}",
            most["engine_operations"] - least["engine_operations"], 0, "",
        ),
        Target(f"a shard of one block with {COLUMNS} columns: operations", most["read_operations"], 10, ""),
        Target("rank 0's survey of a column: CPU", most["column_cpu_s"], 10 * max(1, max(sizes) / 140_000), "s"),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", default="1000,140000", help="sizes, comma-separated")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where trees are built")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.process:
        rank(args.work, args.process)
        return 0
    sizes: dict[int, dict[str, float]] = {}
    for count in sorted(int(text) for text in args.shards.split(",")):
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            sizes[count] = measure(Path(folder), count)
    console = Console(highlight=False)
    table = Table("", *(f"{count:,}" for count in sizes), title="a training, by shards", box=None)
    for key, label in LABELS.items():
        table.add_row(
            label, *("" if isnan(found[key]) else f"{found[key]:,.2f}".removesuffix(".00") for found in sizes.values())
        )
    console.print(table)
    remote = remote_columns.measured()
    checks = [*targets(sizes), *remote_columns.targets(remote)]
    show(console, checks)
    if args.json:
        judged = [asdict(check) | {"met": check.met} for check in checks]
        facts: dict[str, Any] = {"sizes": sizes, "remote": remote, "targets": judged, "date": time.strftime("%Y-%m-%d")}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if args.check and not all(c.met for c in checks) else 0


if __name__ == "__main__":
    without_pandas()
    sys.exit(main())
