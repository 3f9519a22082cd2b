"""What the run directory costs at 1,300, 130,000 and 1,000,000 shards, beside datatrove's markers on the same disk.

    python -m benchmarks.ledger                               1,300 and 130,000 shards, a few minutes
    python -m benchmarks.ledger --shards 1300,130000,1000000  about 15 minutes, 12 GB of small files
    python -m benchmarks.ledger --check                       exit 1 where a target is missed
    python -m benchmarks.ledger --json results.json           the numbers, too
    python3 -m venv /tmp/dt && /tmp/dt/bin/pip install datatrove
    python -m benchmarks.ledger --datatrove /tmp/dt/bin/python  with datatrove, in its own environment

Trees are built in bulk, without fsync: every shard but 200 has its claim, its marker and its journal lines (its claim,
20 saved blocks, its end). Claims and publishing are then measured one by one inside that tree, by the functions that
agents call, fsync and read-back included; status is measured as its users start it, and inside one process. What one
shard costs is counted, see benchmarks.shard_operations. datatrove's side: as many empty `completions/` files;
`get_incomplete_ranks()` tells what is left, `mark_rank_as_completed()` marks (it neither syncs nor checks).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import shard_operations
from benchmarks.commands import ROOT, command
from benchmarks.ledger_tree import OPEN_SHARDS, ROWS, Tree
from benchmarks.overhead import overhead
from benchmarks.targets import Target, show
from hpc import rerun
from hpc.base.errors import Parser
from hpc.base.no_pandas import without_pandas
from hpc.map.tally import Tally

# --- measuring --------------------------------------------------------------------------------


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """The least seconds of some calls."""
    times = []
    for _ in range(rounds):
        gc.collect()
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


AGENT = """
import sys
from hpc.base.no_pandas import without_pandas
without_pandas()
from hpc.map.claiming import Candidates
from hpc.base.heartbeat import Observer
from hpc.run.ledger import Ledger
from hpc.run.plan import Plan
from hpc.run.directory import Run
from hpc.map import verdict
import hpc.map.agent
run = Run(sys.argv[1]); latest = run.latest()
plan = Plan(run.plans, latest.plan)
ledger = run.ledger(latest.identity)
verdict.of_run(run, latest, ledger, plan)  # as each slot asks when it starts and before it ends
candidates = Candidates(run, plan, ledger, Observer(run.slots, "me", 300.0), "me", 7, latest.slots, 60.0)
while candidates.acquire(0.0, ()) is not None:
    pass
verdict.of_run(run, latest, ledger, plan)
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def agent_memory(tree: Tree) -> float:
    """Peak MB of a process with an agent's modules, its search for work and its question whether the run has ended,
    after a whole pass over the plan.
    """
    done = subprocess.run(
        [sys.executable, "-c", AGENT, str(tree.run.path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return float(done.stdout)


DATATROVE = """
import json, os, statistics, sys, time
from datatrove.executor.local import LocalPipelineExecutor
folder, count, left = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder + "/completions", exist_ok=True)
for rank in range(count - left):
    open(f"{folder}/completions/{rank:05d}", "w").close()
os.sync()
executor = LocalPipelineExecutor(pipeline=[], tasks=count, logging_dir=folder)
times = []
for _ in range(3):
    started = time.perf_counter()
    assert len(executor.get_incomplete_ranks()) == left
    times.append(time.perf_counter() - started)
marks = []
for rank in range(count - left, count):
    started = time.perf_counter()
    executor.mark_rank_as_completed(rank)
    marks.append(time.perf_counter() - started)
print(json.dumps({"left_s": min(times), "mark_ms": 1e3 * statistics.median(marks)}))
"""


def datatrove(python: str, folder: Path, count: int) -> dict[str, float]:
    done = subprocess.run(
        [python, "-c", DATATROVE, str(folder), str(count), str(OPEN_SHARDS)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"datatrove: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(folder)
    return measured


def measure(sizes: list[int], python: str | None, work: Path) -> dict[int, dict[str, float]]:
    """All numbers by size. The trees take turns in claiming and publishing: the disk's state favours none."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-", dir=work))
    found: dict[int, dict[str, float]] = {}
    trees = []
    try:
        for count in sizes:
            (folder / str(count)).mkdir()
            trees.append(Tree(folder / str(count), count))
            trees[-1].make_inputs()
            found[count] = {"plan_s": trees[-1].plan()}
            trees[-1].build()
        for name, call in (("claim_ms", Tree.claim), ("publish_ms", Tree.publish)):
            times: dict[int, list[float]] = {count: [] for count in sizes}
            for number in range(OPEN_SHARDS // 2):
                for tree in trees:
                    times[tree.count].append(call(tree, number))
            for count in sizes:
                found[count][name] = 1e3 * statistics.median(times[count])
        for tree in trees:
            _look(tree, found[tree.count])
            shutil.rmtree(tree.folder)
        if python:
            for count in sizes:
                other = datatrove(python, folder / "datatrove", count)
                found[count] |= {"datatrove_left_ms": 1e3 * other["left_s"], "datatrove_mark_ms": other["mark_ms"]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _look(tree: Tree, found: dict[str, float]) -> None:
    """Status, what is left, rerun discovery and an agent's memory, in one tree."""
    look = ("hpc.status", str(tree.run.path), "--json")
    time.sleep(2.5)  # so that no directory has changed just now
    started = time.perf_counter()
    first = command(*look)
    found |= {"status_first_s": time.perf_counter() - started, "first_cpu_s": first.cpu_s, "first_mb": first.mb}
    found["status_s"] = seconds(lambda: command(*look), 5)
    found["left_ms"] = 1e3 * seconds(lambda: Tally(tree.run, tree.submission).count())
    found["rerun_s"] = seconds(lambda: rerun.choose(tree.run, tree.submission, None), 1)
    for bucket in tree.ledger.buckets():  # a busy run: every directory has changed since the last look
        os.utime(tree.ledger.root / bucket)
    time.sleep(2.5)
    found["status_busy_s"] = seconds(lambda: command(*look), 1)
    found["agent_mb"] = agent_memory(tree)


# --- table ------------------------------------------------------------------------------------


def targets(sizes: dict[int, dict[str, float]], cost: dict[str, float] | None) -> list[Target]:
    made = []
    small = sizes[min(sizes)]
    for count, found in sizes.items():
        if count == 130_000:
            made.append(Target("plan 130,000 shards", found["plan_s"], 20, "s"))
            made.append(Target("status of 130,000", found["status_s"], 1, "s"))
        if count == 1_000_000:
            made.append(Target("status of 1,000,000", found["status_s"], 4, "s"))
        if count >= 100_000:
            made.append(Target(f"first look at {count:,}: CPU", found["first_cpu_s"], 10 * count / 140_000, "s"))
            made.append(Target("memory", found["first_mb"], 600, "MB"))
        if count > min(sizes):
            for what in ("claim_ms", "publish_ms"):
                share = found[what] / small[what] - 1
                made.append(Target(f"{what[:-3]} at {count:,} against {min(sizes):,}", 100 * share, 20, "%"))
            growth = found["agent_mb"] - small["agent_mb"]
            made.append(Target(f"agent's memory, growth to {count:,}", growth, 32, "MB"))
        if "datatrove_left_ms" in found and count >= 100_000:
            ratio = found["datatrove_left_ms"] / found["left_ms"]
            made.append(Target(f"what is left of {count:,}, against datatrove", ratio, 10, "x", most=False))
    if cost:
        made.append(Target("overhead an image", cost["cpu_us"], 300, "µs CPU"))
        made.append(Target(f"overhead at {cost['delay_ms']:g} ms an image", 100 * cost["wall_share"], 3, "%"))
    return made


LABELS = {
    "plan_s": "plan (list, statistics, write)", "claim_ms": "claim", "publish_ms": f"publish {ROWS} rows",
    "status_first_s": "hpc.status, first look", "first_cpu_s": "the same: CPU", "first_mb": "the same: memory",
    "status_s": "hpc.status, later looks",
    "status_busy_s": "hpc.status, all directories changed", "left_ms": "what is left (in one process)",
    "rerun_s": "rerun discovery", "agent_mb": "agent's memory",
    "datatrove_left_ms": "datatrove: what is left", "datatrove_mark_ms": "datatrove: mark one done",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", default="1300,130000", help="sizes, comma-separated")
    parser.add_argument("--datatrove", metavar="PYTHON", help="a python that has datatrove")
    parser.add_argument("--images", type=int, default=600, help="of the A-B-B-A comparison; 0 leaves overhead out")
    parser.add_argument("--no-operations", dest="operations", action="store_false", help="do not count a shard's calls")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where trees are built")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed")
    args = parser.parse_args(arguments)
    console = Console(highlight=False)
    sizes = measure([int(count) for count in args.shards.split(",")], args.datatrove, args.work)
    cost = overhead(args.work, args.images, 15.0) if args.images else None
    table = Table(title="run directory, by shards", box=None)
    table.add_column("")
    for count in sizes:
        table.add_column(f"{count:,}", justify="right")
    for key, label in LABELS.items():
        if any(key in found for found in sizes.values()):
            unit = key.rpartition("_")[2].upper() if key.endswith("mb") else key.rpartition("_")[2]
            table.add_row(label, *(f"{found[key]:,.2f} {unit}" for found in sizes.values()))
    console.print(table)
    checks = targets(sizes, cost)
    if args.operations:
        counted = shard_operations.measure(args.work)
        checks += shard_operations.targets(counted)
        console.print(counted.summary())
    show(console, checks)
    if args.json:
        judged = [asdict(check) | {"met": check.met} for check in checks]
        facts: dict[str, Any] = {"sizes": sizes, "overhead": cost, "targets": judged}
        facts |= {"python": sys.version.split()[0], "cpus": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if args.check and not all(c.met for c in checks) else 0


if __name__ == "__main__":
    without_pandas()
    sys.exit(main())
