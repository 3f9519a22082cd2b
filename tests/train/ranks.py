"""Run a task on 1..n gloo ranks in processes of this machine, without hpc: what the tests of the core use."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


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


def launch(
    directory: Path, world: int, config: dict[str, Any], *, module: str = "tests.train.ranks", **gang: Any
) -> list[int]:
    """Exit codes of the ranks. config: keys of the task's config, `train` a dict of TrainSettings."""
    directory.mkdir(parents=True, exist_ok=True)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
    order = json.dumps([str(directory), config, gang])
    ranks = []
    for n in range(world):
        with open(directory / f"rank{n}.log", "ab") as out:
            argv = [sys.executable, "-m", module, order]
            ranks.append(subprocess.Popen(argv, cwd=ROOT, env=environment | {"RANK": str(n)}, stderr=out))
    try:
        codes: list[int] = [0] * world
        for n in reversed(range(world)):  # the last one dies first where one is to die
            codes[n] = ranks[n].wait(timeout=200)
            if codes[n] == -signal.SIGKILL:
                for other in ranks:
                    other.kill()
        return codes
    finally:
        for rank in ranks:
            rank.kill()


def log(directory: Path) -> str:
    return "".join(p.read_text() for p in sorted(directory.glob("rank*.log")))


def curve(directory: Path) -> list[tuple[int, float]]:
    """(step, loss) of metrics.jsonl, every bit of the loss."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def main() -> int:
    import logging

    from hpc.config import _structured
    from hpc.errors import UserError
    from recap.train.loop import train
    from tests.train.tiny import TinyConfig, make_task

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    directory, values, gang = json.loads(sys.argv[1])
    config = _structured(TinyConfig, values, "test")
    alone = Alone(Path(directory), **gang)
    try:
        return train(make_task(config, alone.rank), config.train, alone)
    except UserError as error:
        logging.error("%s", error)
        return 64


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
