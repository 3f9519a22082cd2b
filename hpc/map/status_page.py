"""`hpc.status RUN --html FILE`: a map run on one self-contained page, in the style of `recap.report`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hpc.base import atomic, page
from hpc.base.errors import UserError
from hpc.base.page import escaped
from hpc.base.text import duration
from hpc.map.status import read_status
from hpc.operator import STATUSES
from hpc.run.directory import Run
from hpc.run.published import Published

EXAMPLE_SHARDS = 32  # whose files are read for examples of reasons


def write(run: Run, file: Path) -> dict[str, Any]:
    """Write the page; the facts that stand on it. UserError where the file cannot be written."""
    facts = read_status(run)
    text = whole(facts, examples(run, facts["reasons"].keys()))
    try:
        atomic.replace(file.absolute(), text.encode())
    except OSError as error:
        raise UserError(f"status: {file} cannot be written: {error.strerror}. Choose another --html FILE.") from error
    return facts


def examples(run: Run, reasons: Collection[str]) -> dict[str, str]:
    """A sample for each reason ("status: reason"), as "shard / key": of finished shards that lie in the run."""
    found: dict[str, str] = {}
    if not reasons:
        return found
    source = Published(run.path)
    done = [shard.id for shard in source.shards if shard.id in source]
    step = max(1, len(done) // EXAMPLE_SHARDS)
    for shard_id in done[::step][:EXAMPLE_SHARDS]:
        if len(found) == len(reasons):
            break
        with contextlib.suppress(UserError, OSError):  # gone, damaged or on a store that is away: no examples of it
            shard = source.find(shard_id)
            if shard is None or found.keys() >= shard.marker.get("reasons", {}).keys():
                continue
            for row in shard.table(["key", "status", "reason"]).to_pylist():
                if row["reason"]:
                    found.setdefault(f"{row['status']}: {row['reason']}", f"{shard_id} / {row['key']}")
    return found


def whole(facts: dict[str, Any], found: dict[str, str]) -> str:
    unit, samples = facts["effort"]["unit"], facts["samples"]
    total = sum(samples[s] for s in STATUSES) + (samples["left"] if facts["left_known"] else 0)
    about = f"{facts['column']} · identity {facts['identity']} · {facts['kind']} {' '.join(facts['jobs'][-3:])}"
    parts = [
        f"<h1>{escaped(facts['run'])}</h1>",
        f'<div class="dim">{escaped(about)} · {time.strftime("%Y-%m-%d %H:%M")}</div>',
        page.facts(_facts(facts)),
        _notes(facts),
        f"<h2>Progress</h2><div class=dim>bars: samples a second; line: share of all samples</div>"
        f"{page.over_time(facts['history'], total)}",
        f'<div class="two"><div><h2>Where the {escaped(unit)} hours went</h2>{page.hours_table(facts["effort"])}</div>',
        f"<div><h2>What went wrong, or is odd</h2>{page.reasons_table(facts, found)}</div></div>",
        f"<h2>Nodes</h2>{_nodes(facts)}",
    ]
    return page.whole(facts["run"], parts)


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    shards, samples, effort = facts["shards"], facts["samples"], facts["effort"]
    finished = sum(samples[s] for s in STATUSES)
    rate = facts["rate"].get("5 min") or facts["rate"].get("1 h")
    items = [
        ("shards done", f"{shards['done']:,} of {shards['total']:,}"),
        ("shards failed", f"{shards['failed']:,}"),
        ("samples ok", f"{samples['ok']:,}"),
        ("not ok", f"{finished - samples['ok']:,}"),
        ("samples/s", f"{rate:,.1f}" if rate else "–"),
        ("left at this rate", duration(facts["eta_s"]) if facts["eta_s"] else "–"),
        (f"{effort['unit']} hours", f"{effort['hours']:,.2f}"),
    ]
    if effort["cost"] is not None:
        items.append(("cost", f"{effort['currency']}{effort['cost']:,.2f}"))
    if facts["starving"]:
        items.append(("of their time engines waited for input", f"{100 * facts['starving']['waited']:.0f} %"))
    return items


def _notes(facts: dict[str, Any]) -> str:
    """What stands in the way of the run."""
    lines = [f"{title}: {facts[title]}" for title in ("paused", "cancelled") if facts[title] is not None]
    lines += [f"waiting: {engines} engines: {service}" for service, engines in facts["waiting"].items()]
    lines += [f"excluded: {node}: {reason}" for node, reason in facts["excluded"].items()]
    lines += [*facts["hurt"], *facts["nothing"]]
    return "".join(f"<div>{escaped(line)}</div>" for line in lines)


def _nodes(facts: dict[str, Any]) -> str:
    """A row for each, the slowest first: by the last minutes, or else by all of its hours."""
    rows = ""
    rates = {
        row["node"]: row["rate_per_engine"] or row["samples"] / max(1.0, 3600 * row["hours"]) for row in facts["nodes"]
    }
    for row in sorted(facts["nodes"], key=lambda row: rates[row["node"]]):
        rate = f"{rates[row['node']]:,.2f}"
        waited = "" if row["waited"] is None else f"{100 * row['waited']:.0f} %"
        cells = [f"{row['slots']:,}", f"{row['cpus']:,}", f"{row['samples']:,}", rate, waited]
        cells += [f"{row['deaths']:,}", f"{row['failures']:,}", f"{row['hours']:,.2f}"]
        rows += f"<tr><td>{escaped(row['node'])}" + "".join(f"<td class=n>{cell}" for cell in cells) + "</tr>"
    unit = escaped(facts["effort"]["unit"])
    names = (
        "node",
        "slots",
        "cores",
        "samples",
        f"samples/s a {unit}",
        "waited",
        "deaths",
        "failed attempts",
        f"{unit} h",
    )
    return (
        f"<table><tr>{''.join(f'<th>{name}' for name in names)}</tr>{rows}</table>" if rows else "<div>none yet</div>"
    )
