"""What the stages of a pipeline have done, a row each, for `hpc.status` and `hpc.logs`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpc import kinds
from hpc.base.errors import Exit
from hpc.base.text import SCHEMA, duration, printable
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run
from hpc.slurm.queue import job_of, live_jobs

FINISHED, RUNNING, QUEUED, FAILED, STOPPED, WAITING = "finished", "running", "queued", "failed", "stopped", "waiting"


def read_status(run: PipelineRun) -> dict[str, Any]:
    """The facts, as --json prints them."""
    launched = run.launched()
    newest = {name: run.attempts(name)[-1:] for name in launched["stages"]}
    squeue = live_jobs([i for attempts in newest.values() for a in attempts for i in a.job_ids])
    states = {job_of(name): state for name, state in squeue.items()}
    stages: dict[str, dict[str, Any]] = {}
    for name, record in launched["stages"].items():
        behind = [need for need in record["needs"] if stages[need]["state"] != FINISHED]
        stages[name] = _stage(run, record, behind, states)
    return {
        "schema": SCHEMA,
        "pipeline": run.name,
        "path": str(run.path),
        "source": launched["source"],
        "kind": launched["cluster"],
        "exit": int(_exit([s["state"] for s in stages.values()])),
        "stages": stages,
        "cancelled": run.control_text("cancelled"),
        "logs": str(run.logs),
    }


def _exit(states: list[str]) -> Exit:
    if set(states) == {FINISHED}:
        return Exit.COMPLETE
    over = FAILED in states and RUNNING not in states and QUEUED not in states
    return Exit.SOME_FAILED if over else Exit.INCOMPLETE


def _stage(run: PipelineRun, record: dict[str, Any], behind: list[str], squeue: dict[str, str]) -> dict[str, Any]:
    name = record["stage"]
    attempts = run.attempts(name)
    jobs = [job for a in attempts for job in a.job_ids]
    about = {"kind": record["kind"], "needs": record["needs"], "behind": behind, "jobs": jobs}
    about |= {"path": str(run.path / name), "share": None, "eta_s": None, "doing": "", "why": ""}
    if not behind and run.is_finished(record):
        return {**about, "state": FINISHED, "share": 1.0, "seconds": run.marker(name)["seconds"]}
    events = run.events(attempts[-1]) if attempts else []
    state = _state(events, any(job in squeue for job in jobs[-1:]) or run.at_work(name))
    about["seconds"] = round(run.seconds(name, time.time() if state == RUNNING else None), 1) if events else None
    if state == FAILED:
        about["why"] = str(events[-1]["reason"])
    elif state in (QUEUED, WAITING):
        state = WAITING if behind or state == WAITING else QUEUED
    elif record["kind"] != "command" and Run(run.path / name).submissions():
        about |= _doing(Run(run.path / name))
    return {**about, "state": state}


def _state(events: list[dict[str, Any]], alive: bool) -> str:
    """The state of a stage from the journal of its newest attempt. alive: its process or its stage job is there."""
    if not events:
        return QUEUED if alive else WAITING
    if events[-1]["event"] == "end":
        return FAILED if events[-1]["code"] else WAITING  # it was finished, and something has changed since
    return RUNNING if alive else STOPPED


def _doing(run: Run) -> dict[str, Any]:
    """How far the job of a stage is: share from 0 to 1, and in words."""
    facts = kinds.job_view(run).read()
    if "shards" in facts:
        done, total, unit = facts["shards"]["done"], facts["shards"]["total"], "shards"
    elif "arms" in facts:
        done, total, unit = sum(a["exit"] == 0 for a in facts["arms"].values()), len(facts["arms"]), "arms"
    else:
        done, total, unit = facts["samples"], facts["total"] or 0, "samples"
    share = round(done / total, 4) if total else None
    return {"share": share, "eta_s": facts.get("eta_s"), "doing": f"{done:,} of {total:,} {unit}"}


def render(facts: dict[str, Any]) -> Group:
    """The facts for people: a row for each stage."""
    table = Table.grid(padding=(0, 2))
    for column in range(4):
        table.add_column(style="bold" if column == 0 else "", no_wrap=column < 2, overflow="fold")
    colours = {FINISHED: "green", FAILED: "red", RUNNING: "cyan"}
    for name, stage in facts["stages"].items():
        took = duration(stage["seconds"]) if stage["seconds"] is not None else ""
        state = Text(stage["state"], style=colours.get(stage["state"], "dim"))
        table.add_row(name, state, took, Text(printable(_words(stage))))
    done = sum(s["state"] == FINISHED for s in facts["stages"].values())
    head = Text.assemble((facts["pipeline"], "bold"), f" · {done} of {len(facts['stages'])} stages · {facts['kind']}")
    parts: list[Any] = [head, table]
    if facts["cancelled"] is not None:
        parts.append(Text(printable(f"cancelled: {facts['cancelled']}"), style="yellow"))
    return Group(*parts)


def _words(stage: dict[str, Any]) -> str:
    said = [stage["why"], stage["doing"]]
    if stage["state"] != FINISHED and stage["share"] is not None:
        said.append(f"{100 * stage['share']:.1f} %")
    if stage["eta_s"]:
        said.append(f"{duration(stage['eta_s'])} left")
    if stage["state"] == WAITING:
        said.append(f"for {', '.join(stage['behind']) or 'its turn'}")
    if stage["state"] in (RUNNING, QUEUED) and stage["jobs"]:
        said.append(f"stage job {stage['jobs'][-1]}")
    return " · ".join(filter(None, said))


def logs(run: PipelineRun, lines: int) -> Iterator[str]:
    """What `hpc.logs` prints of a pipeline; one line where no stage has anything to say."""
    said = False
    for line in _stage_logs(run, lines):
        said = True
        yield line
    if not said:
        yield f"no stage of {run.path} is at work or failed; python -m hpc.status {run.path} shows where each is"


def _stage_logs(run: PipelineRun, lines: int) -> Iterator[str]:
    """The last lines of what is not finished: of stage jobs, of commands; and where to look for a job's."""
    for name, stage in read_status(run)["stages"].items():
        if stage["state"] in (FINISHED, WAITING, QUEUED):
            continue
        yield f"stage {name} · {stage['state']}"
        for path in [run.logs / f"{name}-{job}.log" for job in stage["jobs"][-1:]] + [
            Path(stage["path"]) / "stderr.txt"
        ]:
            if path.exists():
                yield f"{path.relative_to(run.path)}:"
                yield from map(printable, path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        if stage["kind"] != "command":
            yield f"its job: python -m hpc.logs {stage['path']}"
        yield ""
