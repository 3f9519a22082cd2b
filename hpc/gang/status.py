"""What a training has done and how long it will take, for `hpc.status`: from metrics.jsonl and the heartbeat."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from hpc.base import heartbeat, journal, terminal
from hpc.base.errors import Exit
from hpc.base.heartbeat import STALE_S
from hpc.base.text import SCHEMA, duration, printable
from hpc.gang.rank import final_code, newest_life
from hpc.run.directory import Run
from hpc.slurm.queue import live_jobs, why_pending

_TAIL = 1 << 20  # bytes of metrics.jsonl that are read


def read_status(run: Run) -> dict[str, Any]:
    """The facts, as --json prints them."""
    latest = run.latest()
    instance, life = newest_life(run, latest)
    beat = heartbeat.read(run.slots, instance) if life >= 0 else {}
    if ended := final_code(run, instance):  # rank 0, which writes the heartbeat, may have been killed before
        beat |= {"state": "exited", "code": ended}
    metrics, evaluation = _last_lines(run.path / "metrics.jsonl")
    newest = _checkpoints(run.path / "checkpoints")
    code = _code(beat)
    return {
        "schema": SCHEMA,
        "run": run.name,
        "path": str(run.path),
        "identity": latest.identity,
        "kind": latest.config["cluster"]["kind"],
        "trainer": latest.config["trainer"],
        "jobs": [j for s in run.submissions() for j in s.job_ids],
        "submission": {"uuid": latest.uuid, "state": latest.state, "error": latest.error},
        "exit": int(code),
        "state": _state(beat),
        "code": beat.get("code") if beat.get("state") == "exited" else None,
        "host": beat.get("host"),
        "ranks": beat.get("ranks"),
        "lives": life + 1,
        "step": metrics.get("step", 0),
        "samples": metrics.get("samples", 0),
        "total": metrics.get("total") or beat.get("total"),
        **{k: metrics.get(k) for k in ("loss", "lr", "grad_norm", "rejected", "samples_per_s", "tokens_per_s")},
        **{k: metrics.get(k) for k in ("mfu", "padding", "data_wait")},
        "evaluation": evaluation or None,
        "eta_s": metrics.get("eta_s") if _state(beat) == "running" else None,
        "checkpoint": newest,
        "picture": _picture(run.path / "samples"),
        "failures": _failures(run, latest.uuid),
        "squeue": dict(Counter(live_jobs(latest.job_ids).values())),
        "waits_for": why_pending(latest.job_ids),
        "paused": run.control_text("pause"),
        "cancelled": run.control_text("cancelled"),
        "logs": str(run.logs),
    }


def _state(beat: dict[str, Any]) -> str:
    if not beat:
        return "not started"
    state = beat.get("state", "starting")
    silent = time.time() - beat.get("t", time.time())
    return f"silent for {silent:.0f} s" if state != "exited" and silent > STALE_S else state


def _code(beat: dict[str, Any]) -> Exit:
    """The job's exit code as it is now."""
    if beat.get("state") != "exited":
        return Exit.INCOMPLETE
    return Exit(beat["code"]) if beat["code"] in (Exit.COMPLETE, Exit.USAGE) else Exit.INCOMPLETE


def _last_lines(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last whole lines of metrics.jsonl about the training and about an evaluation, {} where there is none."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    for line in reversed(lines):
        kind = "evaluation" if b'"kind": "evaluation"' in line else "training"
        if kind not in found:
            try:
                found[kind] = json.loads(line)
            except ValueError:  # cut by the seek
                continue
        if len(found) == 2:
            break
    return found.get("training", {}), found.get("evaluation", {})


def _checkpoints(folder: Path) -> dict[str, Any] | None:
    """Samples and age of the newest complete checkpoint: only those have a number as their name."""
    names = [name for name in os.listdir(folder) if name.isdigit()] if folder.is_dir() else []
    if not names:
        return None
    age = time.time() - (folder / max(names)).stat().st_mtime
    return {"samples": int(max(names)), "age_s": round(age, 1), "kept": len(names)}


def _picture(folder: Path) -> str | None:
    """Path of the newest picture that the training has drawn; their names are numbers of samples."""
    names = [name for name in os.listdir(folder) if name.endswith(".png")] if folder.is_dir() else []
    return str(folder / max(names)) if names else None


def _failures(run: Run, submission: str) -> dict[str, int]:
    """Why ranks of the newest submission failed, and how often; rejected samples by reason."""
    reasons: Counter[str] = Counter()
    for path in sorted(run.journals.glob(f"{submission}-*.jsonl")):
        for event in journal.read(path)[0]:
            if event["event"] in ("failed", "diverged", "rejected"):
                reason = str(event.get("reason", ""))
                if event["event"] == "rejected":  # without what concerns the one sample, so that equal reasons add up
                    reason = reason.partition(" (")[0]
                reasons[f"{event['event']}: {reason}"] += 1
    return dict(reasons.most_common())


def render(facts: dict[str, Any]) -> Group:
    """The facts for people, 80 columns wide."""
    head = terminal.heading(
        facts["run"], f"{facts['trainer']} · identity {facts['identity']} · {facts['kind']}", facts["jobs"]
    )
    table = terminal.facts_table()
    table.add_row("samples", _samples(facts))
    table.add_row("loss", _loss(facts))
    if facts["evaluation"]:
        table.add_row("evaluation", _evaluation(facts["evaluation"]))
    table.add_row("rate", _speed(facts))
    table.add_row("checkpoint", _checkpoint(facts["checkpoint"]))
    if facts["picture"]:
        table.add_row("picture", printable(facts["picture"]))
    table.add_row("gang", _gang(facts))
    parts: list[Any] = [head, table]
    for title in ("paused", "cancelled"):
        if facts[title] is not None:
            parts.append(Text(f"{title}: {facts[title]}", style="yellow"))
    for reason, count in list(facts["failures"].items())[:8]:
        parts.append(Text(f"{count:,} × {printable(reason)}", style="red"))
    return Group(*parts)


def _samples(facts: dict[str, Any]) -> Text:
    total = max(facts["total"] or 0, 1)
    bar = terminal.bar(facts["samples"], total)
    return bar.append(f"\n{facts['samples']:,} of {total:,} · step {facts['step']:,}")


def _loss(facts: dict[str, Any]) -> str:
    if facts["loss"] is None:
        return "no step yet"
    return f"{facts['loss']:.4f} · gradient {facts['grad_norm']:.3g} · rate {facts['lr']:.3g}"


def _evaluation(line: dict[str, Any]) -> str:
    about = ("kind", "step", "samples", "t")
    found = {name: value for name, value in line.items() if name not in about}
    said = " · ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
    )
    return f"{printable(said)} (after {line['samples']:,})"


def _speed(facts: dict[str, Any]) -> str:
    if facts["samples_per_s"] is None:
        return "nothing finished yet"
    line = f"{facts['samples_per_s']:,.1f} samples/s · {facts['tokens_per_s']:,.0f} tokens/s"
    if facts["mfu"] is not None:
        line += f" · MFU {100 * facts['mfu']:.1f} %"
    line += f" · waiting for data {100 * facts['data_wait']:.0f} % · padding {100 * facts['padding']:.1f} %"
    return line + (f"\n{duration(facts['eta_s'])} left at this rate" if facts["eta_s"] else "")


def _checkpoint(newest: dict[str, Any] | None) -> str:
    if newest is None:
        return "none yet"
    return f"{newest['samples']:,} samples, {duration(newest['age_s'])} ago · {newest['kept']} kept"


def _gang(facts: dict[str, Any]) -> str:
    said = facts["state"]
    if facts["ranks"]:
        said += f" · {facts['ranks']} ranks from {facts['host']}"
    if facts["lives"] > 1:
        said += f" · life {facts['lives']}"
    return said + terminal.in_queue(facts["squeue"], facts["waits_for"])
