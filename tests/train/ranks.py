"""Run a task on 1..n gloo ranks in processes of this machine, without hpc: what the tests of the core use."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any


class Alone:
    """A `Gang` without a cluster: stops itself after a step, dies after a step, as the test wants."""

    def __init__(self, directory: Path, stop_at: int = -1, kill_at: int = -1) -> None:
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank, self.device, self.directory = self.rank, "cpu", directory
        self.step, self._stop_at, self._kill_at = 0, stop_at, kill_at

    def stopping(self) -> int:
        return 75 if self.step == self._stop_at and self.rank == self.world - 1 else 0

    def beat(self, **facts: Any) -> None:
        if not facts:
            self.step += 1
            if self.step == self._kill_at and self.rank == self.world - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    def event(self, event: str, **facts: Any) -> None:
        with open(self.directory / f"events-{self.rank}.jsonl", "a") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.train.preloaded"])


def launch(
    directory: Path, world: int, config: dict[str, Any], *, module: str = "tests.train.ranks",
    environment: dict[str, str] | None = None, **gang: Any,
) -> list[int]:  # fmt: skip
    """Exit codes of the ranks. config: keys of the task's config, `train` a dict of TrainSettings.

    Processes are forked from one that has imported torch: a fresh interpreter each would take most of the time.
    """
    directory.mkdir(parents=True, exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    place |= environment or {}
    order = [str(directory), config, gang]
    ranks = [_forks.Process(target=_rank, args=(module, order, place | {"RANK": str(n)})) for n in range(world)]
    try:
        for rank in ranks:
            rank.start()
        for n in reversed(range(world)):  # the last one dies first where one is to die
            ranks[n].join(timeout=240)
            if ranks[n].exitcode == -signal.SIGKILL:
                for other in ranks:
                    other.kill()
        for rank in ranks:
            rank.join(timeout=5)
        return [rank.exitcode if rank.exitcode is not None else -1 for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def _rank(module: str, order: list[Any], place: dict[str, str]) -> None:
    """In the child: be one rank."""
    os.environ.update(place)
    file = os.open(Path(order[0]) / f"rank{place['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    code = 70
    try:
        code = importlib.import_module(module).work(*order)
    except BaseException:  # noqa: BLE001 - as an interpreter's last words
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def log(directory: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in sorted(directory.glob("rank*.log")))


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def curve(directory: Path) -> list[tuple[int, float]]:
    """(step, loss) of metrics.jsonl, every bit of the loss."""
    return [(line["step"], line["loss"]) for line in lines(directory) if "kind" not in line]


def work(directory: str, values: dict[str, Any], gang: dict[str, Any]) -> int:
    """Train the tiny task as one rank; the exit code."""
    import logging

    from hpc.base.errors import UserError
    from hpc.config import structured
    from recap.train.loop import train
    from tests.train.tiny import TinyConfig, make_task

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    config = structured(TinyConfig, values, "test")
    alone = Alone(Path(directory), **gang)
    try:
        return train(make_task(config, alone.rank), config.train, alone)
    except UserError as error:
        logging.error("%s", error)
        return 64
