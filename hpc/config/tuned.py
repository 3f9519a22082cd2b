"""Rates that a tuning has measured (python -m recap.engine.tune): where they lie, and which of them a config may count
on. Written by the tuning's trials, read by forecasts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.config.checked import Config
from hpc.config.schema import RunConfig

FOLDER = "trials"  # of a tuning's run directory; <digest of the settings>.json in it is a trial that has ended
_NODE_KEYS = ("gpus_per_node", "gpus_per_engine", "engines_per_node", "device")


@dataclass(frozen=True)
class Tuned:
    """rate: samples a second of one GPU (without GPUs: of one engine); where: which tuning measured it, for people."""

    rate: float
    where: str


def settings(config: Config) -> dict[str, Any]:
    """All that a rate depends on, but for the input and the machine: the work's keys, and how engines share a node."""
    others = {f.name for f in dataclasses.fields(RunConfig)} | {"data"}
    work = {key: value for key, value in config.resolved.items() if key not in others}
    return {"work": work, "node": {key: config.resolved["cluster"].get(key) for key in _NODE_KEYS}}


def find(runs: Path, config: Config, identity: str) -> Tuned | None:
    """The newest rate that a tuning in this folder of runs has measured with exactly these settings."""
    wanted = json.loads(json.dumps(settings(config)))
    fitting = [
        (trial.get("when", 0.0), trial["rate"], run)
        for run, trial in _trials(runs)
        if trial.get("rate") and trial.get("identity") == identity and trial.get("settings") == wanted
    ]
    if not fitting:
        return None
    _, rate, run = max(fitting)
    return Tuned(rate, f"tuned in {run}")


def _trials(runs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in runs.glob(f"*/{FOLDER}/*.json") if runs.is_dir() else ():
        try:
            trial = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(trial, dict):
            yield file.parent.parent.name, trial
