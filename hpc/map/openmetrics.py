"""Map runs in OpenMetrics text, for Prometheus: https://prometheus.io/docs/specs/om/open_metrics_spec/

What slots did are counters, summed from the journals: they grow through kills, requeues and reruns, and under another
identity too. How the run stands are gauges. No other type of metric is used, so that the textfile collector of
node_exporter, which reads the older text format, takes the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpc.base.errors import Exit
from hpc.base.text import printable
from hpc.map import counters
from hpc.map.status import read_status
from hpc.operator import STATUSES
from hpc.run.directory import Run

Samples = Iterable[tuple[Mapping[str, str], float]]

# name: (type, unit, help). A unit is the end of its name.
FAMILIES = {
    "hpc_samples_produced": ("counter", "", "Samples that slots finished and saved; those done twice count twice."),
    "hpc_tokens_produced": ("counter", "", "Tokens in published rows (operators whose column has `tokens`)."),
    "hpc_shards_published": ("counter", "", "Shards published, those of reruns too."),
    "hpc_engine_seconds": (
        "counter",
        "seconds",
        "Time of engines: GPU-seconds where there are GPUs, one engine each.",
    ),
    "hpc_engine_deaths": ("counter", "", "Engines that died, by reason."),
    "hpc_attempts_failed": ("counter", "", "Attempts at shards that failed, by reason."),
    "hpc_slot_starts": ("counter", "", "Lives of slots."),
    "hpc_slot_restarts": ("counter", "", "Lives of slots that were not their first."),
    "hpc_shards": ("gauge", "", "Shards by state; damaged ones are done."),
    "hpc_shards_damaged": ("gauge", "", "Done shards whose input is damaged."),
    "hpc_samples": ("gauge", "", "Samples by outcome, each once."),
    "hpc_samples_left": ("gauge", "", "Samples that are not finished, as far as known."),
    "hpc_slots": ("gauge", "", "Slots by the state that their heartbeat tells."),
    "hpc_nodes_excluded": ("gauge", "", "Nodes that the run does not use any more."),
    "hpc_engine_time_seconds": ("gauge", "seconds", "Time of engines by what became of it: useful, redone, input, ..."),
    "hpc_engines_waited_ratio": ("gauge", "ratio", "Share of their time that engines lately waited for input."),
    "hpc_eta_seconds": ("gauge", "seconds", "Time left at the present rate; absent where none is known."),
    "hpc_complete": ("gauge", "", "1 once every shard is done, and well."),
    "hpc_failed": ("gauge", "", "1 once nothing is left to do, but shards failed or gave nothing."),
    "hpc_paused": ("gauge", "", "1 while the run is paused."),
    "hpc_cancelled": ("gauge", "", "1 once the run was cancelled."),
}


def text(runs: Mapping[str, Run]) -> str:
    """The exposition of several map runs, by the name that stands in their label `run`."""
    found = [({"run": name}, _counters(counters.count(run)) | _gauges(read_status(run))) for name, run in runs.items()]
    lines = []
    for name, (kind, unit, about) in FAMILIES.items():
        lines += [f"# TYPE {name} {kind}"] + ([f"# UNIT {name} {unit}"] if unit else []) + [f"# HELP {name} {about}"]
        suffix = "_total" if kind == "counter" else ""
        for of_run, families in found:
            lines += [f"{name}{suffix}{_labels({**of_run, **more})} {value}" for more, value in families.get(name, ())]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _counters(total: counters.RunCounters) -> dict[str, Samples]:
    done = total.sums
    return {
        "hpc_samples_produced": [({"status": s}, done.samples[s]) for s in STATUSES],
        "hpc_tokens_produced": _one(done.tokens),
        "hpc_shards_published": _one(done.shards),
        "hpc_engine_seconds": _one(round(total.engine_seconds, 3)),
        "hpc_engine_deaths": _by("reason", done.deaths),
        "hpc_attempts_failed": _by("reason", done.failures),
        "hpc_slot_starts": _one(total.lives),
        "hpc_slot_restarts": _one(total.restarts),
    }


def _gauges(facts: dict[str, Any]) -> dict[str, Samples]:
    shards, samples = facts["shards"], facts["samples"]
    found: dict[str, Samples] = {
        "hpc_shards": _by("state", {state: shards[state] for state in ("done", "running", "open", "failed")}),
        "hpc_shards_damaged": _one(shards["damaged"]),
        "hpc_samples": _by("status", {status: samples[status] for status in STATUSES}),
        "hpc_slots": _by("state", facts["slots"]["states"]),
        "hpc_nodes_excluded": _one(len(facts["excluded"])),
        "hpc_complete": _one(int(facts["exit"] == Exit.COMPLETE and not facts["pilot"])),
        "hpc_failed": _one(int(facts["exit"] == Exit.SOME_FAILED)),
        "hpc_paused": _one(int(facts["paused"] is not None)),
        "hpc_cancelled": _one(int(facts["cancelled"] is not None)),
    }
    spent = facts["effort"]["by_kind"]
    found["hpc_engine_time_seconds"] = [({"kind": kind}, round(3600 * spent[kind]["hours"], 3)) for kind in spent]
    if facts["starving"]:
        found["hpc_engines_waited_ratio"] = _one(facts["starving"]["waited"])
    if facts["left_known"]:
        found["hpc_samples_left"] = _one(samples["left"])
    if facts["eta_s"] is not None:
        found["hpc_eta_seconds"] = _one(facts["eta_s"])
    return found


def _one(value: float) -> Samples:
    return [({}, value)]


def _by(label: str, counts: Mapping[str, int]) -> Samples:
    """A series for each text as it is shown: two that look alike are one."""
    merged: dict[str, int] = {}
    for key, count in sorted(counts.items()):
        merged[printable(key)] = merged.get(printable(key), 0) + count
    return [({label: key}, count) for key, count in merged.items()]


def _labels(labels: Mapping[str, str]) -> str:
    escaped = {k: printable(v).replace("\\", r"\\").replace('"', r"\"") for k, v in labels.items()}
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
