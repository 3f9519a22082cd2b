"""Tables of `hpc.status --by`: the run's nodes, its slots, or what went wrong, one row each."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from hpc.base.text import printable

KINDS = ("node", "error", "slot")


def table(facts: dict[str, Any], by: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    return {"node": _nodes, "error": _errors, "slot": _slots}[by](facts, made)


def safe_text(text: str) -> Text:
    """Text from outside, fit for a terminal: control characters (escape sequences among them) are shown, not obeyed."""
    return Text(printable(text))


def _nodes(facts: dict[str, Any], made: Table) -> Table:
    unit = facts["effort"]["unit"]
    made.add_column("node")
    for name in ("slots", "lives", "samples", f"a {unit}/s", "waited", "deaths", "failures", f"{unit} h"):
        made.add_column(name, justify="right")
    for row in sorted(facts["nodes"], key=lambda r: (r["rate_per_engine"] is None, r["rate_per_engine"] or 0.0)):
        rate = "" if row["rate_per_engine"] is None else f"{row['rate_per_engine']:,.1f}"
        before = [f"{row[k]:,}" for k in ("slots", "lives", "samples")]
        after = [f"{row[k]:,}" for k in ("deaths", "failures")]
        waited = "" if row["waited"] is None else f"{100 * row['waited']:.0f} %"
        made.add_row(safe_text(row["node"]), *before, rate, waited, *after, f"{row['hours']:,.2f}")
    return made


def _slots(facts: dict[str, Any], made: Table) -> Table:
    for name in ("slot", "life", "state", "node", "job"):
        made.add_column(name, overflow="fold")
    made.add_column("samples", justify="right")
    made.add_column("works on", overflow="fold")
    for row in sorted(facts["slots"]["list"], key=lambda r: r.get("slot", 0)):
        at_work = row.get("why") or " ".join(row.get("shards", []))
        made.add_row(
            str(row.get("slot", "")), str(row.get("life", "")), row["state"], safe_text(row.get("host", "")),
            row.get("job", ""), f"{row.get('rows', 0):,}", safe_text(at_work),
        )  # fmt: skip
    return made


def _errors(facts: dict[str, Any], made: Table) -> Table:
    made.add_column("what")
    made.add_column("count", justify="right")
    made.add_column("reason", overflow="fold")
    made.add_column("example", overflow="fold")
    for what, groups in (("failed shards", facts["failures"]), ("damaged shards", facts["damaged"])):
        for reason, group in sorted(groups.items(), key=lambda g: -g[1]["count"]):
            example = " · ".join(filter(None, (group["example"], group["where"])))
            made.add_row(what, f"{group['count']:,}", safe_text(reason), safe_text(example))
    for what, reasons in (
        ("failed attempts", facts["attempts"]),
        ("engine deaths", facts["engine_deaths"]),
        ("samples", facts["reasons"]),
    ):
        for reason, count in sorted(reasons.items(), key=lambda r: -r[1]):
            made.add_row(what, f"{count:,}", safe_text(reason), "")
    return made
