"""What crash tests kill: a slot's own agent and engine, in one process and without a model, so that a life costs
milliseconds.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hpc import config as configs
from hpc.base import snapshot
from hpc.base.errors import Exit
from hpc.map import launch as map_launch
from hpc.map import local, survey
from hpc.map.agent import Agent
from hpc.map.engine import ShardWorker
from hpc.operator import Row, load_operator
from hpc.run import column as columns
from hpc.run.directory import Run
from tests.support.echo import EchoConfig


class InlineEngine:
    """Stands where the agent has an engine process, and does at once what that would do."""

    index = 0

    def __init__(self, agent: Agent) -> None:
        self._agent, self.time = agent, agent.time.engines[0]
        self._operator = survey.operator(agent.run, agent.submission, agent.config)
        self._operator.setup("cpu")
        path = agent.run.inflight / f"{agent.instance}.0"
        self._engine = ShardWorker(agent.run, agent.config, agent.submission.identity, self._operator, path)
        self._engine.emit = self._tell  # type: ignore[method-assign]

    def send(self, command: dict[str, Any]) -> None:
        self._engine.begin_shard(command)
        task = self._engine.tasks[-1]
        for item in [*self._operator.read(task.shard), None]:
            self._engine.on_delivery(task, item)
            self._engine.put_next()
            for row in self._operator.poll(0.0):
                self._engine.on_row(row)
            self._engine.save_due()
            self._agent.heartbeat.advance({**self._agent.facts, "state": "running"})

    def _tell(self, event: str, **facts: Any) -> None:
        if event in ("segment", "finished", "failed"):
            self._agent.on_event(self, json.loads(json.dumps({"event": event, **facts})))  # type: ignore[arg-type]


def own(path: str, slot: int) -> list[str]:
    """One life of a slot: work until every shard is finished. What this life published, as "shard generation epoch"."""
    run = Run(path)
    agent = Agent(run, run.latest(), slot)
    published = []
    publish = agent.publisher.publish

    def noting(claim: Any, *facts: Any) -> Any:
        marker = publish(claim, *facts)
        if marker is not None:
            published.append(f"{claim.shard.id} {claim.generation} {claim.epoch}")
        return marker

    object.__setattr__(agent.publisher, "publish", noting)  # a frozen dataclass
    agent.open_journal()
    engine = InlineEngine(agent)
    while True:
        agent.heartbeat.advance({**agent.facts, "state": "running"})
        claim = agent.candidates.acquire(0.02, ())
        if claim is not None:
            agent._begin(engine, claim)  # type: ignore[arg-type]
        elif agent.candidates.complete():
            break
        else:
            time.sleep(0.005)
    agent._leave(Exit.COMPLETE, "every shard is done")
    return published


def reopen(path: str, generations: dict[str, int]) -> str:
    return str(Run(path).generations.open(generations, "a rerun"))


def submit(config_file: str) -> int:
    """A launch, up to the point where workers are started."""
    local.supervise = lambda run, submission: 0
    return int(map_launch.submit(map_launch.prepare(configs.load(Path(config_file), []))))


# --- the warm process -------------------------------------------------------------------------


def _warm() -> None:
    """Import what the first life would: otherwise most of its calls are Python's own."""
    importlib.import_module("pandas")  # pyarrow looks at it
    schema = columns.schema(load_operator("tests.support.echo.Echo")(EchoConfig()).column(), "")
    buffer = io.BytesIO()
    pq.write_table(columns.to_table([Row("a", 0, "k")], schema), buffer)
    pq.ParquetFile(buffer).read().to_pylist()
    configs.check({"name": "x", "operator": "tests.support.echo.Echo"}, "")
    snapshot.digest()


def _serve() -> None:
    _warm()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _live(**request)
            os.waitpid(answer, os.WUNTRACED)
        answers.write(f"{answer}\n")
        answers.flush()


def _live(task: str, arguments: list[Any], result: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    code = 1
    try:
        answer = globals()[task](*arguments)
        with open(result, "w") as file:
            json.dump(answer, file)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the server must not go on in this process
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
