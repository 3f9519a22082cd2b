"""One trial: the engines of a node side by side, as the job would run them, on real samples for a while."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc.base import atomic
from hpc.config import Config
from hpc.config.devices import devices
from hpc.operator import Shard
from recap.engine.tuning.failures import HUNG, NEVER_HEALTHY, classify
from recap.engine.tuning.measure import Answer, Task

SETTLING_S = 30.0  # that engines may need beyond the time that they are given, to read and to end


@dataclass
class Outcome:
    """What came of a trial. kind: "ok", or one of recap.engine.tuning.failures.KINDS; why: its words. rate, tokens:
    samples and tokens a second of one GPU (of one engine without). engines: processes; devices: GPUs or engines.
    bytes_a_sample: of the input.
    """

    kind: str = "ok"
    why: str = ""
    rate: float = 0.0
    tokens: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    setup_s: float = 0.0
    engines: int = 0
    devices: int = 0
    bytes_a_sample: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


class Trial:
    """See `run`. folder: where its logs go, and what its engines are told and answer."""

    def __init__(self, config: Config, shards: Sequence[Shard], folder: Path, seconds: float, samples: int) -> None:
        self.config, self.folder, self.seconds = config, folder, seconds
        self.places = list(devices(config.run.cluster))
        settings = config.run.map
        self.patience_s = settings.hang_s
        shutil.rmtree(folder, ignore_errors=True)  # of a trial that was cut off
        folder.mkdir(parents=True)
        self.tasks = []
        for engine, place in enumerate(self.places):
            task = Task(
                config.resolved, config.source, [asdict(shard) for shard in shards], engine, len(self.places),
                place["device"], seconds, samples, self.patience_s, str(folder / "go"),
            )  # fmt: skip
            self.tasks.append(folder / f"engine-{engine}.json")
            atomic.replace(self.tasks[-1], atomic.as_json(asdict(task)))

    def run(self) -> Outcome:
        """Start the engines, wait for all, let them go at once, and add up what they did. Nothing of them is left."""
        with ExitStack() as stack:
            keepers = [stack.enter_context(_Kept(self._start(number))) for number in range(len(self.tasks))]
            limit = self.config.run.map.setup_s
            if problem := self._wait(keepers, ".ready", limit):
                ended = Outcome(*problem)
            else:
                (self.folder / "go").touch()
                problem = self._wait(keepers, ".answer", self.seconds + self.patience_s + SETTLING_S)
                ended = Outcome(*problem) if problem else self._sum()
        ended.engines, ended.devices = len(self.places), self.config.run.cluster.devices_per_node
        return ended

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        log = self.folder / f"engine-{number}.log"
        place = {**self.places[number], "HPC_LOG": str(log)}
        del place["device"]
        module = [sys.executable, "-P", "-m", "recap.engine.tuning.measure", str(self.tasks[number])]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "hpc.base.keeper", "--log", str(log), *module],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, **place}, start_new_session=True,
        )  # fmt: skip

    def _wait(self, keepers: Sequence[_Kept], suffix: str, limit_s: float) -> tuple[str, str] | None:
        """Until each engine has written its file; why not, where one cannot."""
        end = time.monotonic() + limit_s
        while True:
            there = [task.with_suffix(suffix).exists() for task in self.tasks]
            if all(there):
                return None
            for number, keeper in enumerate(keepers):
                code = keeper.process.poll()
                answer = self._answer(number)
                if answer is not None and answer.problem:
                    return classify(answer.kind, answer.problem, code, self._logs())
                if code is not None and not there[number] and answer is None:
                    return classify("", self._last_words(number, code), code, self._logs())
            if time.monotonic() > end:
                kind = NEVER_HEALTHY if suffix == ".ready" else HUNG
                return classify(kind, f"an engine gave no sign for {limit_s:g} s", None, self._logs())
            time.sleep(0.05)

    def _answer(self, number: int) -> Answer | None:
        file = self.tasks[number].with_suffix(".answer")
        return Answer(**json.loads(file.read_bytes())) if file.exists() else None

    def _sum(self) -> Outcome:
        answers: list[Any] = [self._answer(number) for number in range(len(self.tasks))]
        if failed := next((answer for answer in answers if answer.problem), None):
            return Outcome(*classify(failed.kind, failed.problem, None, self._logs()))
        counted = self.config.run.cluster.devices_per_node
        return Outcome(
            rate=sum(answer.rate for answer in answers) / counted,
            tokens=sum(answer.tokens for answer in answers) / counted,
            samples=sum(answer.samples for answer in answers),
            seconds=max(answer.seconds for answer in answers),
            setup_s=max(answer.setup_s for answer in answers),
            bytes_a_sample=sum(a.read_bytes for a in answers) / max(1, sum(a.read for a in answers)),
            reasons={reason: count for answer in answers for reason, count in answer.reasons.items()},
        )

    def _logs(self) -> list[Path]:
        """Of the engines and of their servers."""
        return sorted(self.folder.glob("*.log"))

    def _last_words(self, number: int, code: int) -> str:
        log = self.folder / f"engine-{number}.log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
        return f"{how}: {lines[-1][:300] if lines else 'it said nothing'}"


class _Kept:
    """An engine's keeper: when its input is closed it ends all of the engine's tree, then itself."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
