"""What the run directory costs at 1,300, 130,000 and 1,000,000 shards, beside datatrove's markers on the same disk.

    python -m benchmarks.ledger                               1,300 and 130,000 shards, a few minutes
    python -m benchmarks.ledger --shards 1300,130000,1000000  about 15 minutes, 12 GB of small files
    python -m benchmarks.ledger --check                       exit 1 where a target is missed
    python -m benchmarks.ledger --json results.json           the numbers, too
    python3 -m venv /tmp/dt && /tmp/dt/bin/pip install datatrove
    python -m benchmarks.ledger --datatrove /tmp/dt/bin/python  with datatrove, in its own environment

Trees are built in bulk, without fsync: every shard but 200 has its claim, its marker and its journal lines (one
segment, one done). Claims and publishing are then measured one by one inside that tree, by the functions that agents
call, fsync and read-back included; status is measured as its users start it, and inside one process. datatrove's side:
as many empty `completions/` files; `get_incomplete_ranks()` tells what is left, `mark_rank_as_completed()` marks (it
neither syncs nor checks).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from hpc import column as columns
from hpc import config as configs
from hpc import plan, rerun
from hpc.lean import without_pandas
from hpc.ledger import Claim
from hpc.operator import Row
from hpc.publish import Publisher
from hpc.rundir import Run
from hpc.tally import Tally
from recap.data.inputs import DataConfig, list_shards
from recap.worlds.tars import write_tar
from tests.instant import InstantEngine, InstantOperator

ROOT = Path(__file__).resolve().parent.parent
OPEN = 200  # shards left open in a tree: claimed and published one by one
ROWS = 512  # of a published shard
LINKS = 60_000  # names of one file (ext4 allows 65,000)


@dataclass
class Target:
    """A claim and its limit."""

    name: str
    value: float
    limit: float
    unit: str
    most: bool = True  # the limit is the largest allowed value

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.most else self.value >= self.limit


# --- one tree ---------------------------------------------------------------------------------


class Tree:
    """A run directory with `count` shards, all but OPEN of them done."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.folder = folder
        self.inputs = folder / "in"
        self.config_file = folder / "c.yaml"
        _write_config(self.config_file, "run", self.inputs, 0.0)
        self.config = configs.load(self.config_file, [])
        self.run = Run(folder / "run")

    def make_inputs(self) -> None:
        """Empty tars with img2dataset's statistics: hard links, so that there are as many names and few inodes."""
        self.inputs.mkdir()
        for number in range(self.count):
            if number % LINKS == 0:
                sources = [self.folder / f"tar-{number}", self.folder / f"stats-{number}"]
                sources[0].write_bytes(b"x")
                sources[1].write_bytes(b'{"successes": 10000}')
            for source, suffix in zip(sources, (".tar", "_stats.json"), strict=True):
                os.link(source, self.inputs / f"{number:08d}{suffix}")

    def plan(self) -> float:
        started = time.perf_counter()
        shards = list_shards(DataConfig(shards=[str(self.inputs)]))
        self.run.make()
        self.name = plan.write(self.run.plans, shards)
        seconds = time.perf_counter() - started
        self.shards = shards
        return seconds

    def build(self) -> None:
        """Claims, markers and journals of all shards but OPEN, in bulk."""
        identity = configs.identity(self.config, self.config.operator())
        self.submission = self.run.new_submission(
            plan=self.name, identity=identity, column="recap", code="", slots=256, source="",
            config=self.config.resolved,
        )  # fmt: skip
        self.ledger = self.run.ledger(identity)
        self.left = self.shards[:: max(1, self.count // OPEN)][:OPEN]
        left = {s.id for s in self.left}
        made: set[Path] = set()
        now = time.time()
        journals = [[_line(now - 7200, "start", host="n1")] for _ in range(256)]
        for number, shard in enumerate(s for s in self.shards if s.id not in left):
            folder = self.ledger.directory(shard.id)
            if folder not in made:
                folder.mkdir(parents=True)
                made.add(folder)
            if number % LINKS == 0:
                claim, marker = self.folder / f"claim-{number}", self.folder / f"marker-{number}"
                claim.write_text('{"owner": "x"}')
                marker.write_text("{}")
            os.link(claim, folder / f"{shard.id}.g0.e0")
            os.link(marker, folder / f"{shard.id}.g0.done")
            journal = journals[number % 256]
            counts = {"ok": 9950, "skipped": 50}
            facts = {"shard": shard.id, "g": 0, "counts": counts}
            journal.append(_line(now - 3000, "segment", engine=0, start=9728, adopted=False, **facts))
            facts |= {"reasons": {"skipped: image: truncated": 50}, "rows": 10000, "seconds": 161.8}
            journal.append(_line(now - 3000, "done", damage=None, detail=None, **facts))
        for number, journal in enumerate(journals):
            name = f"{self.submission.uuid}-{number:04d}-0.jsonl"
            (self.run.journals / name).write_text("".join(journal))
        os.sync()

    def claim(self, number: int) -> float:
        """Seconds of one claim: link, fsync of file and directory."""
        started = time.perf_counter()
        assert self.ledger.claim(Claim(self.left[number], 0, 0), "me")
        return time.perf_counter() - started

    def publish(self, number: int) -> float:
        """Seconds of publishing one shard of ROWS samples: write, fsync, read back, verify, link, marker."""
        shard, identity = self.left[number], self.submission.identity
        schema = columns.schema(self.config.operator().column(), identity)
        publisher = Publisher(self.run, self.ledger, "recap", identity, schema, 0.05, output=None, owner={"slot": 0})
        values = {"caption": "A picture of a flag.", "sha256": "f" * 64, "text": "flag", "finish": "stop"}
        table = columns.to_table([Row(shard.id, i, f"{i:05d}", values=values) for i in range(ROWS)], schema)
        columns.write_segment(self.run.segments(identity, shard.id, 0), 0, table)
        started = time.perf_counter()
        assert publisher.publish(Claim(shard, 0, 0), ROWS, None, time.time())
        return time.perf_counter() - started


def _write_config(path: Path, name: str, inputs: Path, delay: float) -> None:
    tree = {
        "name": name, "runs": str(path.parent), "operator": "tests.instant.InstantOperator",
        "captioner": {"model": f"instant:{delay}"}, "data": {"shards": [str(inputs)]}, "cluster": {"kind": "local"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(tree))


def _write_tar(path: Path, image: bytes, count: int) -> None:
    with open(path, "wb") as file:
        write_tar(file, ((f"{i:06d}", {"jpg": image + b" %d" % i, "txt": b"text"}) for i in range(count)))


def _line(t: float, event: str, **facts: Any) -> str:
    return json.dumps({"t": round(t, 3), "event": event, **facts}) + "\n"


# --- measuring --------------------------------------------------------------------------------


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """Best of a few."""
    times = []
    for _ in range(rounds):
        gc.collect()
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def command(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode in (0, 1, 2), done.stderr


AGENT = """
import sys
from hpc.lean import without_pandas
without_pandas()
from hpc.candidates import Candidates
from hpc.heartbeat import Observer
from hpc.ledger import Ledger
from hpc.plan import Plan
from hpc.rundir import Run
import hpc.agent
run = Run(sys.argv[1]); latest = run.latest()
plan = Plan(run.plans, latest.plan)
ledger = run.ledger(latest.identity)
candidates = Candidates(run, plan, ledger, Observer(run.slots, "me", 300.0), "me", 7, latest.slots, 60.0)
while candidates.acquire(0.0, ()) is not None:
    pass
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def agent_memory(tree: Tree) -> float:
    """Peak MB of a process with an agent's modules and its search for work, after a whole pass over the plan."""
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
        [python, "-c", DATATROVE, str(folder), str(count), str(OPEN)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"datatrove: {done.stderr.strip().splitlines()[-1]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    shutil.rmtree(folder)
    return measured


def measure(sizes: list[int], python: str | None, work: Path) -> dict[int, dict[str, float]]:
    """All sizes. Claims and publishing go round the trees, so that each meets the disk in the same mood."""
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
            for number in range(OPEN // 2):
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
    found["status_first_s"] = seconds(lambda: command(*look), 1)
    found["status_s"] = seconds(lambda: command(*look), 5)
    found["left_ms"] = 1e3 * seconds(lambda: Tally(tree.run, tree.submission).count())
    found["rerun_s"] = seconds(lambda: rerun.choose(tree.run, tree.submission, None), 1)
    for bucket in tree.ledger.buckets():  # a busy run: every directory has changed since the last look
        os.utime(tree.ledger.root / bucket)
    time.sleep(2.5)
    found["status_busy_s"] = seconds(lambda: command(*look), 1)
    found["agent_mb"] = agent_memory(tree)


# --- overhead per image -----------------------------------------------------------------------


def overhead(work: Path, images: int, delay_ms: float) -> dict[str, float]:
    """The worker against a bare loop over the same tars with the same engine: CPU an image, and wall time A-B-B-A.

    CPU: of all processes, from the difference of a long and a short run, so that start-up cancels out.
    """
    folder = Path(tempfile.mkdtemp(prefix="overhead-", dir=work))
    try:
        jpeg = os.urandom(20_000)
        for name, count in (("short", 5), ("long", 25)):
            (folder / name).mkdir()
            for shard in range(count):
                _write_tar(folder / name / f"{shard:05d}.tar", jpeg + b"%d" % shard, 400)
        short, long = (_worker(folder, name, 0.0)[0] for name in ("short", "long"))
        bare_short, bare_long = (_bare(folder / name, 0.0, 10**9)[0] for name in ("short", "long"))
        per_image = 20 * 400
        ours, bare = (long - short) / per_image, (bare_long - bare_short) / per_image
        (folder / "wall").mkdir()
        _write_tar(folder / "wall" / "0.tar", jpeg, images)
        walls: dict[str, list[float]] = {"A": [], "B": []}
        for which in "ABBA":
            delay = delay_ms / 1e3
            taken = _bare(folder / "wall", delay, images) if which == "A" else _worker(folder, "wall", delay)
            walls[which].append(taken[1])
        share = sum(walls["B"]) / sum(walls["A"]) - 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"cpu_us": 1e6 * (ours - bare), "cpu_bare_us": 1e6 * bare, "wall_share": share, "delay_ms": delay_ms}


def _worker(folder: Path, name: str, delay: float) -> tuple[float, float]:
    """(CPU seconds of all processes, seconds from the first claim to the last saved segment) of a real launch."""
    config = folder / f"{name}.yaml"
    _write_config(config, f"run-{name}-{time.monotonic_ns()}", folder / name, delay)
    made = configs.load(config, [])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command("hpc.launch", str(config))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = Run(made.directory)
    tally = Tally(run, run.latest())
    tally.reader.refresh()
    [life] = tally.reader.lives.values()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, life.worked - life.begun


def _bare(folder: Path, delay: float, images: int) -> tuple[float, float]:
    """(CPU seconds, seconds) of reading the tars and captioning, with nothing saved."""
    operator = InstantOperator(configs.load(ROOT / "configs/caption/demo.yaml", [f"data.shards=[{folder}]"]).work)
    engine = InstantEngine(delay)
    cpu, started, count = time.process_time(), time.perf_counter(), 0
    for shard in operator.plan():
        for item in operator.read(shard):
            if count < images and hasattr(item, "payload"):
                engine.put(_request(count, item.payload))
                count += 1
            if not engine.want():
                engine.poll(0.0)
    while engine._waiting:
        engine.poll(0.0)
    return time.process_time() - cpu, time.perf_counter() - started


def _request(number: int, picture: Any) -> Any:
    from recap.engine import Request

    return Request(number, picture.image, picture.text or "")


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
    "status_first_s": "hpc.status, first look", "status_s": "hpc.status, later looks",
    "status_busy_s": "hpc.status, all directories changed", "left_ms": "what is left (in one process)",
    "rerun_s": "rerun discovery", "agent_mb": "agent's memory",
    "datatrove_left_ms": "datatrove: what is left", "datatrove_mark_ms": "datatrove: mark one done",
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", default="1300,130000", help="sizes, comma-separated")
    parser.add_argument("--datatrove", metavar="PYTHON", help="a python that has datatrove")
    parser.add_argument("--images", type=int, default=600, help="of the A-B-B-A comparison; 0 leaves overhead out")
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
    table = Table(title="targets", box=None)
    for name in ("", "measured", "limit", ""):
        table.add_column(name, justify="right" if name in ("measured", "limit") else "left")
    for check in checks:
        sign = "≤" if check.most else "≥"
        verdict = "met" if check.met else "[red]missed[/]"
        table.add_row(check.name, f"{check.value:,.2f} {check.unit}", f"{sign} {check.limit:g} {check.unit}", verdict)
    console.print(table)
    if args.json:
        judged = [asdict(check) | {"met": check.met} for check in checks]
        facts: dict[str, Any] = {"sizes": sizes, "overhead": cost, "targets": judged}
        facts |= {"python": sys.version.split()[0], "cpus": os.cpu_count(), "date": time.strftime("%Y-%m-%d")}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if args.check and not all(c.met for c in checks) else 0


if __name__ == "__main__":
    without_pandas()
    sys.exit(main())
