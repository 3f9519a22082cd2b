"""What a run has done, what it is doing, what went wrong and how long it will take: from the run directory alone.

    python -m hpc.status runs/demo              one picture
    python -m hpc.status runs/demo --watch      until the run ends
    python -m hpc.status runs/demo --json       for scripts (`schema` counts the format's versions)

Reads directory listings and journals; no stat per shard, no scheduler accounting. Where squeue answers, its view of the slots is
shown beside. Exit codes: 0 complete, 1 incomplete, 2 nothing left but some shards failed, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hpc import breaker, heartbeat, journal
from hpc.errors import Exit, UserError
from hpc.launcher import live_jobs
from hpc.ledger import CLAIMED, DONE, FAILED, OPEN, Ledger
from hpc.operator import STATUSES
from hpc.plan import Plan
from hpc.rundir import Run, Submission

SCHEMA = 1
WINDOWS = {"5 min": 300.0, "1 h": 3600.0}
STALE_S = 90.0  # without a heartbeat, for display only; takeover never looks at clocks


class JournalReader:
    """All journals of a run, read on from where the last call stopped. Keeps what status needs, not the events."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}
        self.done: dict[tuple[str, int], dict[str, Any]] = {}
        self.failed: dict[tuple[str, int], dict[str, Any]] = {}
        self.partial: dict[tuple[str, int], dict[int, Counter[str]]] = {}  # by first sample of the segment
        self.rates: Counter[int] = Counter()  # samples by second
        self.deaths: Counter[str] = Counter()
        self.last = 0.0
        self.first = 0.0

    def refresh(self) -> None:
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder.is_dir() else []:
            events, self._offsets[path.name] = journal.read(path, self._offsets.get(path.name, 0))
            for event in events:
                self._take(event)
        oldest = self.last - 2 * max(WINDOWS.values())
        for second in [s for s in self.rates if s < oldest]:
            del self.rates[second]

    def _take(self, event: dict[str, Any]) -> None:
        kind, t = event["event"], float(event.get("t", 0.0))
        self.last = max(self.last, t)
        self.first = min(self.first or t, t)
        at = (event.get("shard", ""), event.get("g", 0))
        if kind == "done":
            self.done[at] = event
            self.partial.pop(at, None)
        elif kind == "failed":
            self.failed[at] = event
        elif kind == "segment":
            # Adopted segments are named again, and a zombie may save what its successor saved: each counts once.
            if at not in self.done:
                self.partial.setdefault(at, {})[event["start"]] = Counter(event["counts"])
            if not event["adopted"]:
                self.rates[int(t)] += sum(event["counts"].values())
        elif kind == "engine":
            self.deaths[event["died"]] += 1


@dataclass
class _Reason:
    count: int = 0
    example: str = ""
    where: str = ""


@dataclass
class _Tally:
    shards: Counter[str] = field(default_factory=Counter)
    samples: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, _Reason] = field(default_factory=dict)
    failures: dict[str, _Reason] = field(default_factory=dict)
    rows_done: int = 0
    expected_left: int = 0
    unknown_left: int = 0


def gather(run: Run, reader: JournalReader | None = None) -> dict[str, Any]:
    """The facts, as --json prints them."""
    latest = run.latest()
    reader = reader or JournalReader(run.journals)
    reader.refresh()
    tally = _tally(run, latest, reader)
    slots = _slots(run, run.submissions())
    live = any(s["state"] != "exited" for s in slots["list"])
    now = time.time() if live else reader.last
    left = _samples_left(tally)
    rates = _rates(reader, now)
    speed = rates.get("5 min") or rates.get("1 h") or 0.0
    total = sum(tally.shards.values())
    if tally.shards[DONE] + tally.shards[FAILED] < total:
        code = Exit.INCOMPLETE
    else:
        code = Exit.SOME_FAILED if tally.shards[FAILED] else Exit.COMPLETE
    return {
        "schema": SCHEMA,
        "run": run.name,
        "path": str(run.path),
        "identity": latest.identity,
        "column": latest.column,
        "kind": latest.config["cluster"]["kind"],
        "jobs": [j for s in run.submissions() for j in s.job_ids],
        "submission": {"uuid": latest.uuid, "state": latest.state, "error": latest.error},
        "exit": int(code),
        "shards": {
            "total": total,
            "done": tally.shards[DONE],
            "damaged": sum(r.count for r in tally.damaged.values()),
            "running": tally.shards[CLAIMED],
            "open": tally.shards[OPEN],
            "failed": tally.shards[FAILED],
        },
        "samples": {**{s: tally.samples[s] for s in STATUSES}, "left": left},
        "reasons": dict(tally.reasons.most_common()),
        "rate": rates,
        "eta_s": round(left / speed, 1) if speed and left and live else None,
        "slots": slots,
        "damaged": {k: vars(v) for k, v in tally.damaged.items()},
        "failures": {k: vars(v) for k, v in tally.failures.items()},
        "engine_deaths": dict(reader.deaths),
        "excluded": breaker.excluded(run),
        "paused": run.control_text("pause"),
        "cancelled": run.control_text("cancelled"),
        "logs": str(run.logs),
    }


def _tally(run: Run, latest: Submission, reader: JournalReader) -> _Tally:
    ledger = run.ledger(latest.identity)
    survey = ledger.survey(run.reopened())
    tally = _Tally()
    for shard in Plan(run.plans, latest.plan).shards():
        state = survey.get(shard.id)
        status, generation = (state.status, state.generation) if state else (OPEN, 0)
        tally.shards[status] += 1
        at = (shard.id, generation)
        if status == DONE:
            _count_done(tally, shard.id, reader.done.get(at) or _marker(ledger, *at))
        elif status == FAILED:
            _count_failed(tally, shard.id, reader.failed.get(at) or ledger.read(shard.id, f"g{generation}.failed"))
        else:
            partial: Counter[str] = sum(reader.partial.get(at, {}).values(), Counter())
            tally.samples.update(partial)
            if shard.expected is None:
                tally.unknown_left += 1
            else:
                tally.expected_left += max(shard.expected - sum(partial.values()), 0)
    return tally


def _marker(ledger: Ledger, shard_id: str, generation: int) -> dict[str, Any]:
    """A marker whose journal line is missing (its writer died between the two)."""
    marker = ledger.read(shard_id, f"g{generation}.done")
    damage = marker.get("damage") or {}
    return {**marker, "damage": damage.get("reason"), "detail": damage.get("detail")}


def _count_done(tally: _Tally, shard: str, done: dict[str, Any]) -> None:
    tally.samples.update(done.get("counts", {}))
    tally.rows_done += done.get("rows", 0)
    tally.reasons.update(done.get("reasons", {}))
    if done.get("damage"):
        reason = tally.damaged.setdefault(done["damage"], _Reason(example=shard, where=done.get("detail") or ""))
        reason.count += 1


def _count_failed(tally: _Tally, shard: str, failed: dict[str, Any]) -> None:
    where = failed.get("log") or failed.get("host") or ""
    reason = tally.failures.setdefault(failed.get("reason") or "unknown", _Reason(example=shard, where=where))
    reason.count += 1


def _samples_left(tally: _Tally) -> int:
    """Samples of unfinished shards; where a count is not known, the mean of the finished shards stands for it."""
    finished = tally.shards[DONE]
    mean = tally.rows_done / finished if finished else 0.0
    return tally.expected_left + round(mean * tally.unknown_left)


def _rates(reader: JournalReader, now: float) -> dict[str, float]:
    """Samples a second over each window, not counting time before the first event."""
    rates = {}
    for name, window in WINDOWS.items():
        samples = sum(n for second, n in reader.rates.items() if second > now - window)
        span = min(window, now - reader.first) if reader.first else 0.0
        if samples and span > 0:
            rates[name] = round(samples / span, 2)
    return rates


def _slots(run: Run, submissions: list[Submission]) -> dict[str, Any]:
    """The newest life of every slot, as its heartbeat says; and what squeue says where it answers."""
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    for facts in heartbeat.read_all(run.slots):
        at = (facts.get("submission", ""), facts.get("slot", 0))
        if facts.get("life", 0) >= newest.get(at, {}).get("life", -1):
            newest[at] = facts
    wanted = {s.uuid for s in submissions[-1:]}
    rows = []
    for facts in newest.values():
        if facts.get("submission") not in wanted and facts.get("state") == "exited":
            continue
        silent = time.time() - facts.get("t", time.time())
        state = facts.get("state", "starting")
        if state != "exited" and silent > STALE_S:
            state = "silent"
        rows.append({**facts, "state": state, "silent_s": round(silent, 1)})
    jobs = live_jobs([j for s in submissions for j in s.job_ids])
    return {"list": rows, "states": dict(Counter(r["state"] for r in rows)), "squeue": dict(Counter(jobs.values()))}


# --- the picture ------------------------------------------------------------------------------


def render(facts: dict[str, Any]) -> Group:
    """The facts for people, 80 columns wide."""
    head = Text.assemble((facts["run"], "bold"), f" · {facts['column']} · identity {facts['identity']} · {facts['kind']}")
    if facts["jobs"]:
        head.append(f" {' '.join(facts['jobs'][-3:])}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("shards", _bar(facts["shards"]))
    table.add_row("samples", _samples(facts["samples"]))
    table.add_row("rate", _rate_line(facts))
    table.add_row("slots", _slot_line(facts["slots"]))
    parts: list[Any] = [head, table]
    for title, group in (("paused", facts["paused"]), ("cancelled", facts["cancelled"])):
        if group is not None:
            parts.append(Text(clean(f"{title}: {group}"), style="yellow"))
    for node, reason in facts["excluded"].items():
        parts.append(Text(clean(f"excluded: {node}: {reason}"), style="yellow"))
    if facts["reasons"]:
        parts.append(_reason_table("not captioned" if facts["column"] else "reasons", facts["reasons"]))
    if facts["damaged"]:
        parts.append(_group_table("damaged", "shards", facts["damaged"]))
    if facts["engine_deaths"]:
        parts.append(_reason_table("engine deaths", facts["engine_deaths"]))
    if facts["failures"]:
        parts.append(_group_table("failed", "shards", facts["failures"]))
        parts.append(Text(f"rerun them: python -m hpc.rerun {facts['path']}"))
    return Group(*parts)


def _bar(shards: dict[str, int], width: int = 28) -> Text:
    total = max(shards["total"], 1)
    filled = round(width * shards["done"] / total)
    damaged = f" ({shards['damaged']:,} damaged)" if shards["damaged"] else ""
    bar = Text.assemble(("█" * filled, "green"), ("░" * (width - filled), "dim"))
    bar.append(f" {100 * shards['done'] / total:.1f} %\n{shards['done']:,} of {shards['total']:,} done{damaged}")
    for name in ("running", "open"):
        if shards[name]:
            bar.append(f" · {shards[name]:,} {name}")
    if shards["failed"]:
        bar.append(f" · {shards['failed']:,} failed", style="red")
    return bar


def _samples(samples: dict[str, int]) -> str:
    line = " · ".join(f"{samples[s]:,} {s}" for s in STATUSES if samples[s] or s == "ok")
    finished = sum(samples[s] for s in STATUSES)
    if finished:
        line += f" · {100 * (1 - samples['ok'] / finished):.2f} % not ok"
    return line + (f" · {samples['left']:,} left" if samples["left"] else "")


def _rate_line(facts: dict[str, Any]) -> str:
    if not facts["rate"]:
        return "nothing finished yet"
    line = " · ".join(f"{rate:,.1f} samples/s ({window})" for window, rate in facts["rate"].items())
    return line + (f" · {duration(facts['eta_s'])} left at this rate" if facts["eta_s"] else "")


def _slot_line(slots: dict[str, Any]) -> str:
    said = " · ".join(f"{n} {state}" for state, n in sorted(slots["states"].items())) or "none has started"
    if slots["squeue"]:
        said += " · squeue: " + ", ".join(f"{n} {state}" for state, n in sorted(slots["squeue"].items()))
    return said


def _reason_table(title: str, reasons: dict[str, int], limit: int = 8) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, (reason, count) in enumerate(list(reasons.items())[:limit]):
        table.add_row(title if number == 0 else "", f"{count:,}", Text(clean(reason)))
    if len(reasons) > limit:
        table.add_row("", "", f"and {len(reasons) - limit} more reasons (--json)")
    return table


def _group_table(title: str, unit: str, groups: dict[str, dict[str, Any]], limit: int = 8) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", style="dim")
    ordered = sorted(groups.items(), key=lambda g: -g[1]["count"])
    for number, (reason, group) in enumerate(ordered[:limit]):
        example = f"{group['example']} · {group['where']}" if group["where"] else group["example"]
        table.add_row(title if number == 0 else "", f"{group['count']:,}", Text(clean(reason)), Text(clean(example)))
    return table


def clean(text: str) -> str:
    """Text from outside, fit for a terminal: control characters (escape sequences among them) are shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _view(run: Run) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], Group]]:
    """How to gather and how to render, by the kind of the run."""
    if run.latest().config.get("trainer"):
        from hpc import gang_status

        return lambda: gang_status.gather(run), gang_status.render
    reader = JournalReader(run.journals)
    return lambda: gather(run, reader), render


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hpc.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--watch", action="store_true", help="redraw every 2 s until no shard is left")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    args = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        look, draw = _view(Run(args.run))
        facts = look()
        if args.json:
            sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        elif args.watch:
            with Live(draw(facts), console=console, auto_refresh=False) as live:
                while facts["exit"] == Exit.INCOMPLETE:
                    time.sleep(2)
                    facts = look()
                    live.update(draw(facts), refresh=True)
        else:
            console.print(draw(facts))
    except UserError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    except KeyboardInterrupt:
        return Exit.INCOMPLETE
    return int(facts["exit"])


if __name__ == "__main__":
    sys.exit(main())
