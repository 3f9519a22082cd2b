"""What the worker adds to an image: against a bare loop over the same tars with the same engine."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.commands import ROOT, command
from benchmarks.ledger_tree import write_config, write_tar_of
from hpc import config as configs
from hpc.map.tally import Tally
from hpc.run.directory import Run
from tests.support.instant import InstantEngine, InstantOperator


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
                write_tar_of(folder / name / f"{shard:05d}.tar", jpeg + b"%d" % shard, 400)
        short, long = (_worker(folder, name, 0.0)[0] for name in ("short", "long"))
        bare_short, bare_long = (_bare(folder / name, 0.0, 10**9)[0] for name in ("short", "long"))
        per_image = 20 * 400
        ours, bare = (long - short) / per_image, (bare_long - bare_short) / per_image
        (folder / "wall").mkdir()
        write_tar_of(folder / "wall" / "0.tar", jpeg, images)
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
    write_config(config, f"run-{name}-{time.monotonic_ns()}", folder / name, delay)
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

    return Request(number, picture.image, {"alt": picture.text or ""})
