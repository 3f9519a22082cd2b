"""What the arms of a sweep have done and how long they will take, a row each, for `hpc.status`."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpc.base import atomic, terminal
from hpc.base.errors import FINAL, Exit
from hpc.base.text import SCHEMA, duration, printable
from hpc.gang import status as gang_status
from hpc.run.directory import Run


def runs(run: Run) -> dict[str, Run]:
    """The arms' run directories by name, {} where a run is no sweep."""
    return {name: Run(run.path / name) for name in run.latest().config.get("sweep") or {}}


def arm(run: Run) -> dict[str, Any]:
    """`gang_status.read_status` of an arm, with `state` in a word or two."""
    facts = gang_status.read_status(run)
    return facts | {"state": _state(facts)}


def read_status(run: Run) -> dict[str, Any]:
    """The facts, as --json prints them."""
    latest = run.latest()
    found = {name: arm(one) for name, one in runs(run).items() if one.submissions()}
    return {
        "schema": SCHEMA,
        "run": run.name,
        "path": str(run.path),
        "kind": latest.config["cluster"]["kind"],
        "trainer": latest.config["trainer"],
        "jobs": [j for s in run.submissions() for j in s.job_ids],
        "submission": {"uuid": latest.uuid, "state": latest.state, "error": latest.error},
        "exit": int(_exit([facts["state"] for facts in found.values()], len(latest.config["sweep"]))),
        "arms": found,
        "cancelled": run.control_text("cancelled"),
        "logs": str(run.logs),
    }


def _state(facts: dict[str, Any]) -> str:
    if facts["exit"] == Exit.COMPLETE:
        return "complete"
    if facts["squeue"] and facts["state"] in ("not started", "exited"):
        return ", ".join(facts["squeue"]).lower()  # waits for its first or next life
    if facts["cancelled"] is not None and facts["state"] in ("not started", "exited"):
        return "cancelled"
    if facts["state"] != "exited":
        return str(facts["state"])
    return "failed" if facts["code"] in FINAL else "stopped"


def _exit(states: list[str], arms: int) -> Exit:
    if any(state not in ("complete", "failed") for state in states) or len(states) < arms:
        return Exit.INCOMPLETE
    return Exit.SOME_FAILED if "failed" in states else Exit.COMPLETE


def cancel(run: Run, why: bytes) -> None:
    """Cancel the arms that have not ended: each gang looks into the run directory of its own arm."""
    for one in runs(run).values():
        if one.submissions() and arm(one)["state"] not in ("complete", "failed"):
            atomic.create(one.control / "cancelled", why)


# --- for people -------------------------------------------------------------------------------


def render(facts: dict[str, Any]) -> Group:
    """The facts for people: a row for each arm."""
    about = f"{len(facts['arms'])} arms · {facts['trainer']} · {facts['kind']}"
    head = terminal.heading(facts["run"], about, facts["jobs"])
    table = _table("", "samples", "", "loss", "samples/s", "left", "state")
    for name, found in facts["arms"].items():
        table.add_row(name, *_row(found))
    parts: list[Any] = [head, table]
    if any(found["evaluation"] for found in facts["arms"].values()):
        parts += [Text(), _evaluations(facts["arms"])]
    if facts["cancelled"] is not None:
        parts.append(Text(printable(f"cancelled: {facts['cancelled']}"), style="yellow"))
    for name, found in facts["arms"].items():
        for reason, count in list(found["failures"].items())[:2]:
            parts.append(Text(printable(f"{name}: {count:,} × {reason}"), style="red"))
    return Group(*parts)


def _row(facts: dict[str, Any]) -> list[str]:
    total = facts["total"] or 0
    state = facts["state"] + (f" · life {facts['lives']}" if facts["lives"] > 1 else "")
    return [
        f"{facts['samples']:,}" + (f" of {total:,}" if total else ""),
        f"{100 * facts['samples'] / total:.1f} %" if total else "",
        "" if facts["loss"] is None else f"{facts['loss']:.4f}",
        "" if facts["samples_per_s"] is None else f"{facts['samples_per_s']:,.1f}",
        duration(facts["eta_s"]) if facts["eta_s"] else "",
        printable(state),
    ]


def _evaluations(arms: dict[str, dict[str, Any]]) -> Table:
    """The arms' last evaluations side by side."""
    lines = {name: facts["evaluation"] or {} for name, facts in arms.items()}
    about = ("kind", "step", "samples", "t")
    names = list(dict.fromkeys(n for line in lines.values() for n, v in line.items() if _number(v) and n not in about))
    table = _table("evaluation", *names)
    for name, line in lines.items():
        table.add_row(name, *(f"{line[n]:.4g}" if n in line else "" for n in names))
    return table


def _number(value: object) -> bool:
    return isinstance(value, int | float)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, style="bold", no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "state" else "right")
    return table
