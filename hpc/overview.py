"""All runs of a folder, a line each, for `hpc.status runs/`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpc.any_status import read_any_status
from hpc.base import text
from hpc.base.errors import Exit, UserError
from hpc.base.text import duration, printable
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run


def runs(folder: Path) -> list[Run]:
    """The runs and pipelines that lie in a folder, by name; [] where it is itself a run, or holds none."""
    if not folder.is_dir() or _is_run(folder):
        return []
    return [Run(folder / name) for name in sorted(os.listdir(folder)) if _is_run(folder / name)]


def _is_run(path: Path) -> bool:
    return Run(path).is_run() or PipelineRun(path).record.exists()


def read_status(folder: Path) -> dict[str, Any]:
    """The facts, as --json prints them."""
    found = [_one(run) for run in runs(folder)]
    codes = {one["exit"] for one in found}
    exit_code = next((code for code in (Exit.INCOMPLETE, Exit.SOME_FAILED) if code in codes), Exit.COMPLETE)
    return {"schema": text.SCHEMA, "folder": str(folder), "exit": int(exit_code), "runs": found}


def _one(run: Run) -> dict[str, Any]:
    """A run in a few facts. For one that cannot be read they say why, so that the others are shown all the same."""
    about: dict[str, Any] = {"run": run.name, "path": str(run.path), "kind": "", "share": None}
    try:
        facts = read_any_status(run)
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        why = f"cannot be read: {type(error).__name__}: {error}".splitlines()[0]
        return {**about, "state": "?", "doing": why, "eta_s": None, "exit": int(Exit.INCOMPLETE)}
    kind, doing, share = _progress(facts)
    about |= {"kind": kind, "doing": doing, "share": share, "eta_s": facts.get("eta_s"), "exit": facts["exit"]}
    return {**about, "state": _state(facts)}


def _progress(facts: dict[str, Any]) -> tuple[str, str, float | None]:
    """(kind, in words, share from 0 to 1)"""
    if "stages" in facts:
        finished = sum(stage["state"] == "finished" for stage in facts["stages"].values())
        kind, done, total, unit = "pipeline", finished, len(facts["stages"]), "stages"
    elif "arms" in facts:
        kind, unit, total = "sweep", "arms", len(facts["arms"])
        done = sum(arm["exit"] == Exit.COMPLETE for arm in facts["arms"].values())
    elif "shards" in facts:
        kind, done, total, unit = "map", facts["shards"]["done"], facts["shards"]["total"], "shards"
    else:
        kind, done, total, unit = "training", facts["samples"], facts["total"] or 0, "samples"
    words = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    if kind == "map" and facts["shards"]["failed"]:
        words += f", {facts['shards']['failed']:,} failed"
    if kind == "map" and facts["nothing"]:
        words += f" · {facts['nothing'][0]}"
    return kind, words, round(done / total, 4) if total else None


def _state(facts: dict[str, Any]) -> str:
    if facts["exit"] == Exit.COMPLETE:
        return "complete"
    if facts["exit"] == Exit.SOME_FAILED:
        return "failed"
    for control in ("cancelled", "paused"):
        if facts.get(control) is not None:
            return control
    if "stages" in facts or "arms" in facts:
        parts = facts.get("stages") or facts["arms"]
        return "running" if any(part["state"] == "running" for part in parts.values()) else "open"
    if "shards" in facts:
        slots = facts["slots"]
        awake = [state for state in slots["states"] if state != "exited"]
        return awake[0] if awake else ", ".join(slots["squeue"]).lower() or "stopped"
    waiting = facts["state"] in ("not started", "exited")
    return (", ".join(facts["squeue"]).lower() or "stopped") if waiting else str(facts["state"])


def render(facts: dict[str, Any]) -> Group:
    """The facts for people: a line for each run."""
    table = Table.grid(padding=(0, 2))
    for column in range(4):
        table.add_column(style="bold" if column == 0 else "", no_wrap=column != 3, overflow="fold")
    colours = {"complete": "green", "failed": "red", "running": "cyan"}
    for one in facts["runs"]:
        left = f" · {duration(one['eta_s'])} left" if one["eta_s"] else ""
        share = f" · {100 * one['share']:.1f} %" if one["share"] is not None else ""
        state = Text(printable(one["state"]), style=colours.get(one["state"], "yellow"))
        table.add_row(Text(printable(one["run"])), one["kind"], state, Text(printable(one["doing"]) + share + left))
    return Group(table)
