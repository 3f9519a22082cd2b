"""What a tuning has found: its trials with hours and money for the whole plan, as facts, a table, and a page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpc import config as configs
from hpc.base import page, terminal
from hpc.base.errors import UserError
from hpc.base.page import escaped, label
from hpc.base.text import SCHEMA, hours_text, printable
from hpc.config import tuned
from hpc.run.directory import Run
from recap.engine.tuning.grid import Grid, shown
from recap.engine.tuning.job import TuneConfig
from recap.engine.tuning.trials import Trials, read_sample

OPERATOR = "recap.engine.tuning.job.TuneOperator"


def facts(run: Run) -> dict[str, Any]:
    """All that is known, as --json prints it. UserError where this is no tuning's run directory."""
    latest = run.latest()
    if latest.config.get("operator") != OPERATOR:
        raise UserError(f"tune: {run.path} is not a tuning's run directory.")
    config = latest.checked()
    work: TuneConfig = config.work
    job = configs.check(work.job, "the job that is tuned")
    grid, folder = Grid.checked(work.grid), run.path / tuned.FOLDER
    trials = Trials(folder, job, grid)
    cluster, records = job.run.cluster, list(trials.ended().values())
    samples, about = _plan_size(read_sample(folder), records)
    rows = [_row(record, samples, cluster.price) for record in records]
    rows.sort(key=lambda row: (-row["rate"], row["shard"]))
    good = [row for row in rows if row["rate"]]
    return {
        "schema": SCHEMA, "run": run.name, "path": str(run.path), "job": job.run.name, "unit": cluster.unit("engine"),
        "grid": grid.values, "points": len(grid), "refused": _refused(trials), "samples": samples,
        "samples_estimated": about, "trials": rows,
        "left": max(0, min(work.trials, len(trials.configs)) - len(rows)), "price": cluster.price,
        "currency": cluster.currency, "best": good[0] if good else None,
        "launch": _launch(work.source, good[0]["changes"]) if good and work.source else None,
    }  # fmt: skip


def _row(record: Mapping[str, Any], samples: int | None, price: float | None) -> dict[str, Any]:
    """A trial, and what the whole plan would take at its rate."""
    names = ("shard", "changes", "kind", "why", "rate", "tokens", "samples", "seconds", "setup_s", "engines",
             "identity", "host", "logs", "reasons")  # fmt: skip
    hours = samples / record["rate"] / 3600 if samples and record["rate"] else None
    cost = hours * price if hours is not None and price is not None else None
    return {name: record[name] for name in names} | {"hours": hours, "cost": cost}


def _plan_size(sample: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> tuple[int | None, bool]:
    """Samples of the whole plan, and whether that is an estimate from the bytes of those that were read."""
    if sample["samples"] is not None:
        return int(sample["samples"]), False
    sizes = [record["bytes_a_sample"] for record in records if record["bytes_a_sample"]]
    return (round(sample["bytes"] * len(sizes) / sum(sizes)), True) if sizes and sample["bytes"] else (None, False)


def _refused(trials: Trials) -> list[dict[str, Any]]:
    return [{"changes": trials.grid.changes(point), "why": why} for point, why in trials.refused.items()]


def _launch(source: Sequence[str], changes: Mapping[str, Any]) -> str:
    """The command that runs the job with these settings."""
    return shlex.join(["python", "-m", "hpc.launch", *source, *(f"{k}={shown(v)}" for k, v in changes.items())])


# --- for people -------------------------------------------------------------------------------


def render(found: Mapping[str, Any]) -> Group:
    """The table, and what to do with it."""
    rows, keys = found["trials"], list(found["grid"])
    about = f"{len(rows)} trials of {found['points']} points · job {found['job']}"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for key in keys:
        table.add_column(_short(key, keys), style="bold")
    several = len({row["identity"] for row in rows if row["rate"]}) > 1
    for name in (f"samples/s a {found['unit']}", "", "tokens/s", "hours", "cost", *["identity"] * several):
        table.add_column(name, justify="left" if name in ("", "identity") else "right")
    most = max((row["rate"] for row in rows), default=0.0)
    for row in rows:
        values = [shown(row["changes"][key]) for key in keys]
        if not row["rate"]:
            table.add_row(*values, Text(row["kind"], style="red"))
            continue
        width = round(20 * row["rate"] / most)
        table.add_row(
            *values, f"{row['rate']:,.2f}", Text("█" * width, style="green"), f"{row['tokens']:,.0f}",
            "" if row["hours"] is None else hours_text(row["hours"], found["unit"]), _money(found, row["cost"]),
            *[row["identity"]] * several,
        )  # fmt: skip
    parts: list[Any] = [terminal.heading(found["run"], about, []), table]
    parts += [Text(line) for line in _said(found)]
    return Group(*parts)


def _said(found: Mapping[str, Any]) -> list[str]:
    """The lines below the table."""
    lines = [
        printable(f"{_words(row['changes'])}: {row['kind']}: {row['why'][:300]} (logs: {row['logs']})")
        for row in found["trials"] if not row["rate"]
    ]  # fmt: skip
    if found["refused"]:
        first = found["refused"][0]
        count = len(found["refused"])
        lines.append(printable(f"{count} points are refused: {_words(first['changes'])}: {first['why']}"))
    if found["left"]:
        lines.append(f"{found['left']} trials are left: the same command goes on")
    if found["samples"] is None:
        lines.append("hours are not known: nothing says how many samples the plan has (data.expected)")
    else:
        about = " (an estimate from their bytes)" if found["samples_estimated"] else ""
        lines.append(f"hours and cost are of the whole plan, {found['samples']:,} samples{about}")
    if found["launch"]:
        lines += ["", f"best    {found['launch']}", "        a --dry-run of it counts on this rate"]
    return lines


def _money(found: Mapping[str, Any], cost: float | None) -> str:
    return "" if cost is None else f"{found['currency']}{cost:,.2f}"


def _words(changes: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={shown(value)}" for key, value in changes.items())


def _short(key: str, keys: Sequence[str]) -> str:
    """A key's last part, where that is enough to tell it from the others."""
    last = key.rpartition(".")[2]
    return key if last.isdecimal() or sum(other.rpartition(".")[2] == last for other in keys) > 1 else last


# --- the page ---------------------------------------------------------------------------------


def html(found: Mapping[str, Any]) -> str:
    """The picture: every trial as a bar, and the best rate along each axis."""
    best = found["best"]
    head = [("trials", str(len(found["trials"]))), ("points", str(found["points"]))]
    if best:
        head.append((f"samples/s a {found['unit']}, best", f"{best['rate']:,.2f}"))
        if best["hours"] is not None:
            head.append(("for the whole plan", hours_text(best["hours"], found["unit"])))
        if best["cost"] is not None:
            head.append(("cost", _money(found, best["cost"])))
    parts = [f"<h1>{escaped(found['run'])}</h1>", page.facts(head), "<h2>Trials, the fastest first</h2>", _bars(found)]
    for key, values in found["grid"].items():
        if len(values) > 1:
            parts += [f"<h2>Best rate by {escaped(key)}</h2>", _axis(found, key, values)]
    if found["launch"]:
        parts.append(f"<h2>Launch</h2><div class=key>{escaped(found['launch'])}</div>")
    return page.whole(f"{found['run']}: tuning", parts)


def _bars(found: Mapping[str, Any]) -> str:
    rows = found["trials"]
    most = max((row["rate"] for row in rows), default=0.0) or 1.0
    shapes = ""
    for at, row in enumerate(rows):
        width, told = 300 * row["rate"] / most, f"{row['rate']:,.2f}" if row["rate"] else row["kind"]
        shapes += f'<rect x="600" y="{22 * at + 4}" width="{width:.1f}" height="14" fill="var(--a)"/>'
        shapes += label(0, 22 * at + 16, _words(row["changes"])) + label(round(608 + width), 22 * at + 16, told)
    return f'<svg viewBox="0 0 980 {22 * len(rows) + 8}" role="img" aria-label="rates">{shapes}</svg>'


def _axis(found: Mapping[str, Any], key: str, values: Sequence[Any]) -> str:
    """The best rate that was measured at each value, as a line; failures as crosses at the bottom."""
    rows = found["trials"]
    most = max((row["rate"] for row in rows), default=0.0) or 1.0
    shapes, points = "", []
    for at, value in enumerate(values):
        x = 60 + round(880 * at / max(1, len(values) - 1))
        here = [row for row in rows if row["changes"][key] == value]
        shapes += label(x - 10, 128, shown(value))
        for row in here:
            y = 108 - 96 * row["rate"] / most
            shapes += (
                f'<circle cx="{x}" cy="{y:.1f}" r="3" fill="var(--a)"/>' if row["rate"] else label(x - 4, 112, "×")
            )
        if rates := [row["rate"] for row in here if row["rate"]]:
            points.append(f"{x},{108 - 96 * max(rates) / most:.1f}")
    shapes += f'<polyline points="{" ".join(points)}" fill="none" stroke="var(--b)" stroke-width="2"/>'
    shapes += label(0, 16, f"{most:,.1f}")
    return f'<svg viewBox="0 0 980 134" role="img" aria-label="{escaped(key)}">{shapes}</svg>'
