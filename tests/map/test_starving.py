"""Who waits for whom: engines for input, or input for engines, against stalls whose size is known."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import pytest

from hpc.base.errors import Exit
from hpc.base.underfilled import Underfilled
from hpc.map import status
from recap.engine.asynchronous import AsynchronousEngine
from recap.engine.interface import Caption, Request
from tests.support.jobs import EchoJob, inline, texts


@pytest.mark.slow(ci=True)
def test_a_slow_reader_and_a_slow_engine(tmp_path: Path) -> None:
    """Each within 5 points: lines that take 0.3 s to be read, of whose time work takes a third, as it says itself; and
    lines that are read at once. Saving is work too, which the operator cannot time: it is done at the end.
    """
    applied, at_the_end = tmp_path / "applied", {"save_s": 600.0, "segment": 64}
    slow = EchoJob(tmp_path / "reader", {"a": texts(20)}, read_s=0.3, delay_s=0.1, applied=str(applied), map=at_the_end)
    busy = EchoJob(tmp_path / "engine", {"a": texts(60)}, delay_s=0.1, batch=4, map=at_the_end)
    workers = []
    for job in (slow, busy):
        job.submit()
        workers.append(job.worker())
    assert [worker.wait(240) for worker in workers] == [Exit.COMPLETE] * 2, slow.log() + busy.log()
    found = slow.status()
    assert found["starving"]["bound"] == "input"
    work = sum(map(float, Path(f"{applied}.seconds").read_text().split()))
    seconds = 3600 * sum(found["effort"]["by_kind"][kind]["hours"] for kind in ("useful", "input"))
    assert found["starving"]["waited"] == pytest.approx(1 - work / seconds, abs=0.05)
    assert found["starving"]["waited"] > 0.4
    (node,) = found["nodes"]
    assert node["waited"] == found["starving"]["waited"] and node["cpus"] >= 1 and node["engines"] == 1
    said = " ".join(inline("hpc.status", str(slow.run.path), "--by", "node").stdout.split())
    assert "by input: engines waited" in said and f"{node['node']} has {node['cpus']} cores for 1 engine " in said
    found = json.loads(inline("hpc.status", str(busy.run.path), "--json").stdout)
    assert found["starving"]["bound"] == "engines" and found["starving"]["waited"] < 0.05
    assert "by engines: they waited" in inline("hpc.status", str(busy.run.path)).stdout


@pytest.mark.parametrize(("fixed", "each"), [(0.4, 0.0), (0.1, 0.02), (0.0, 0.05)])
def test_what_partly_filled_batches_cost(fixed: float, each: float) -> None:
    """Batches of 16 at most that take `fixed + each n` s, of which a slow input fills 1 to 7: what is lost is what full
    ones would have spared. Times are noisy.
    """
    chance = random.Random(5)
    fill, truth = Underfilled(), 0.0
    for number in range(400):
        n = 16 if number < 50 else chance.randint(1, 7)
        seconds = (fixed + each * n) * chance.uniform(0.8, 1.2)
        fill.took(n, seconds)
        if n < 16:
            fill.short(n, seconds)
            truth += fixed + each * n - n * (fixed / 16 + each)
    total = sum(fixed + each * n for n in [16] * 50 + [4] * 350)
    assert fill.lost_s(16) / total == pytest.approx(truth / total, abs=0.05)


def test_one_size_of_batches_tells_nothing() -> None:
    fill = Underfilled()
    for _ in range(10):
        fill.took(1, 0.1)
        fill.short(1, 0.1)
    assert fill.lost_s(16) == 0.0


class Far(AsynchronousEngine):
    """A server that answers each request after 0.2 s, however many there are."""

    async def caption(self, request: Request) -> Caption:
        await asyncio.sleep(0.2)
        return Caption(request.id, "x")

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_server_that_is_asked_too_little(share: float) -> None:
    """A window of 16 of which input fills only a share: the rest is what the engine waits for."""
    engine, put, done, chance = Far(16), 0, 0, random.Random(1)
    try:
        begun = time.monotonic()
        while done < 16 * 8 * share:
            wanted = 16 if share == 1.0 else chance.randint(2, 6)
            while len(engine._in_flight) < wanted:
                engine.put(Request(put, None))
                put += 1
            done += len(engine.poll(0.2))
        seconds = time.monotonic() - begun
        at_best = done / 16 * 0.2  # seconds with a full window
        assert engine.starved_s / seconds == pytest.approx(1 - at_best / seconds, abs=0.05 if share < 1 else 0.15)
    finally:
        engine.close()


def test_a_node_whose_slots_are_of_older_launches_has_no_number_of_cores() -> None:
    node = {"node": "n3", "waited": 0.2, "cpus": 0, "engines": 2}
    said = status._starving_line({"bound": "input", "waited": 0.1, "node": node}, "engine")
    assert said.endswith("; n3 with 2 engines (20 %)")
    said = status._starving_line({"bound": "input", "waited": 0.1, "node": node | {"cpus": 8}}, "engine")
    assert said.endswith("; n3 has 8 cores for 2 engines (20 %)")
