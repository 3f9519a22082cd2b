"""What a map run has done, is doing and how long it will take: the facts (`read_status`), and how they are printed
(`render`).
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hpc.base import heartbeat, terminal
from hpc.base.errors import Exit
from hpc.base.heartbeat import STALE_S
from hpc.base.text import SCHEMA, duration, hours_text, printable, short
from hpc.map import breaker, cost, hours, pilot_status, verdict
from hpc.map.life import ENDED, Life
from hpc.map.tally import Settled, Tally, Totals
from hpc.operator import STATUSES
from hpc.run import lost
from hpc.run.directory import Run, Submission
from hpc.run.events import VARIABLE, unsent
from hpc.run.journal_reader import JournalReader
from hpc.run.ledger import DONE, FAILED

INPUT_BOUND = 0.1  # share of their time that engines wait, from which on input is called the limit
WINDOWS = {"5 min": 300.0, "1 h": 3600.0}


def current(run: Run, tally: Tally | None = None) -> Tally:
    """A tally for the run's newest submission: `tally` itself where it fits, else a new one."""
    latest = run.latest()
    return tally if tally is not None and tally.fits(latest) else Tally(run, latest)


def read_status(run: Run, tally: Tally | None = None) -> dict[str, Any]:
    """The facts, as --json prints them."""
    latest = run.latest()
    tally = current(run, tally)
    newest, totals = heartbeat.newest(run.slots, tally.exited), tally.count()
    settled, reader, slots = totals.settled, tally.reader, _slots(run, newest)
    live = any(s["state"] != "exited" for s in slots["list"])
    # A run that is over counts up to its last sample: a later launch may have found nothing to do.
    now = time.time() if live else max(reader.rates, default=0) + 1.0
    rates = _rates(reader, now)
    speed = rates.get("5 min") or rates.get("1 h") or 0.0
    finished = settled.shards[DONE] + settled.shards[FAILED]
    nothing = _nothing(settled, latest, finished == totals.total)
    gone = tally.lost.look()
    pilot = pilot_status.read(run, latest, reader)
    left = totals.left if pilot is None else pilot["samples_left"]
    ended = Exit.SOME_FAILED if settled.shards[FAILED] or nothing or gone else Exit.COMPLETE
    code = ended if finished == totals.total or (pilot and pilot["complete"]) else Exit.INCOMPLETE
    spent = _hours(run, tally, slots["list"], totals)
    lives = spent.mine
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
        "shards": _shards(totals),
        "pilot": pilot,
        "compared": pilot_status.compared(run, latest),
        "samples": {**{s: totals.samples[s] for s in STATUSES}, "left": left},
        "left_known": 2 * totals.unknown <= totals.total - finished,
        "reasons": dict(settled.reasons.most_common()),
        "rate": rates,
        **_outlook(left if live else 0, speed, rates),
        "effort": cost.spent(lives, latest, totals, speed if live else 0.0, spent.total) | spent.described(latest),
        "idle_at_the_end": None if totals.unclaimed else cost.idle_at_the_end(lives, reader, totals.claimed, now),
        "nodes": cost.nodes(lives, now),
        "starving": _starving(lives, now),
        "slow": cost.slow(lives, now),
        "history": reader.over_time(),
        "slots": slots,
        "nothing": nothing,
        "lost": gone,
        "damaged": {k: vars(v) for k, v in settled.damaged.items()},
        "failures": {k: vars(v) for k, v in settled.failures.items()},
        "engine_deaths": dict(reader.deaths),
        "attempts": dict(sum((life.failures for life in reader.lives.values()), Counter())),
        "waiting": _waiting(slots["list"]),
        "hurt": _hurt(run, slots["list"]),
        "excluded": breaker.excluded(run),
        "unsent": unsent(run),
        "paused": run.control_text("pause"),
        "cancelled": run.control_text("cancelled"),
        "logs": str(run.logs),
    }


def _hours(run: Run, tally: Tally, newest: list[dict[str, Any]], totals: Totals) -> hours.RunHours:
    jobs = [j for s in run.submissions() for j in s.job_ids]
    return hours.of_run(run, tally, newest, totals.kept, tally.accounting.look(jobs))


def _starving(lives: list[Life], now: float) -> dict[str, Any] | None:
    """Whether input or engines limit the run (`bound`), the share of their time that engines waited for input
    (`waited`), and the node where that is highest. None where nothing was measured.
    """
    awake = [life for life in lives if life.state not in ENDED] or lives
    waited = cost.waited_share(awake)
    if waited is None:
        return None
    hosts = {life.host for life in awake}
    nodes = [row for row in cost.nodes(lives, now) if row["node"] in hosts and row["waited"] is not None]
    worst = max(nodes, key=lambda row: row["waited"], default=None)
    return {"bound": "input" if waited >= INPUT_BOUND else "engines", "waited": round(waited, 4), "node": worst}


def _outlook(left: int, speed: float, rates: dict[str, float]) -> dict[str, Any]:
    """Seconds that are left at the present rate (`eta_s`), and at the fastest and the slowest one (`eta_range_s`); None
    where nothing is left or nothing goes on.
    """
    return {"eta_s": round(left / speed, 1) if speed and left else None, "eta_range_s": _range(left, rates)}


def _range(left: int, rates: dict[str, float]) -> list[float] | None:
    """Seconds that are left at the fastest and at the slowest of the rates."""
    known = [rate for rate in rates.values() if rate]
    return [round(left / max(known), 1), round(left / min(known), 1)] if known and left else None


def _shards(totals: Totals) -> dict[str, int]:
    settled = totals.settled
    done, failed = settled.shards[DONE], settled.shards[FAILED]
    return {
        "total": totals.total,
        "done": done,
        "damaged": sum(r.count for r in settled.damaged.values()),
        "running": totals.claimed,
        "open": totals.total - done - failed - totals.claimed,
        "failed": failed,
    }


def _nothing(settled: Settled, latest: Submission, over: bool) -> list[str]:
    """Warnings that nothing came of something: of shards that could not be read at all, or, once it is over, of the
    whole run.
    """
    empty = {reason: found for reason, found in settled.damaged.items() if found.empty}
    said = [verdict.barren(sum(found.empty for found in empty.values()), ", ".join(sorted(empty)))]
    if over and not settled.shards[FAILED] and not verdict.allowed(latest):
        said.insert(0, verdict.fruitless(settled.samples, settled.reasons, latest.by_rule))
    return [line for line in said if line]


def _hurt(run: Run, slots: list[dict[str, Any]]) -> list[str]:
    """Why workers cannot work in the run directory, or have given up."""
    missing = [name for name in run.missing().split(", ") if name]
    said = [f"{name} is missing in {run.path}: no slot can work. Launching again makes it" for name in missing]
    whys = ((s.get("code"), str(s.get("why", ""))) for s in slots)
    left = Counter(why for code, why in whys if code == Exit.USAGE or why.startswith(breaker.GAVE_UP))
    return said + [f"{count:,} {'slot' if count == 1 else 'slots'} left: {why}" for why, count in left.items()]


def _rates(reader: JournalReader, now: float) -> dict[str, float]:
    """Samples a second over each window, not counting time before the first event."""
    rates = {}
    for name, window in WINDOWS.items():
        samples = sum(n for second, n in reader.rates.items() if second > now - window)
        span = min(window, now - reader.first) if reader.first else 0.0
        if samples and span > 0:
            rates[name] = round(samples / span, 2)
    return rates


def _slots(run: Run, newest: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest life of every slot, as its heartbeat says; and what squeue says where it answers."""
    submissions = run.submissions()
    wanted = {s.uuid for s in submissions[-1:]}
    rows = []
    for facts in newest:
        if facts.get("submission") not in wanted and facts.get("state") == "exited":
            continue
        silent = time.time() - facts.get("t", time.time())
        state = facts.get("state", "starting")
        if state != "exited" and silent > STALE_S:
            state = "silent"
        rows.append({**facts, "state": state, "silent_s": round(silent, 1)})
    job_ids = [j for s in submissions for j in s.job_ids]
    jobs, reasons = _squeue(job_ids) if job_ids else ({}, [])
    return {
        "list": rows, "states": dict(Counter(r["state"] for r in rows)), "squeue": dict(Counter(jobs.values())),
        "waits_for": reasons,
    }  # fmt: skip


def _waiting(slots: list[dict[str, Any]]) -> dict[str, int]:
    """Engines that wait for a service that is away, by what they say of it."""
    awake = [row for row in slots if row["state"] not in ENDED]
    return dict(Counter(e["waiting"] for row in awake for e in row.get("engines", []) if e.get("waiting")))


def _squeue(job_ids: list[str]) -> tuple[dict[str, str], list[str]]:
    from hpc.slurm.queue import live_jobs, why_pending  # and submitit with it: a quarter of a second

    jobs = live_jobs(job_ids)
    return jobs, why_pending(job_ids) if "PENDING" in jobs.values() else []


def render(facts: dict[str, Any]) -> Group:
    """The facts for people, 80 columns wide."""
    head = terminal.heading(
        facts["run"], f"{facts['column']} · identity {facts['identity']} · {facts['kind']}", facts["jobs"]
    )
    table = terminal.facts_table()
    table.add_row("shards", _shard_bar(facts["shards"]))
    if facts["pilot"]:
        table.add_row("pilot", pilot_status.line(facts["pilot"], facts["shards"]["total"]))
    table.add_row("samples", _samples(facts["samples"], facts["left_known"]))
    table.add_row("rate", _rate_line(facts))
    if facts["effort"]["hours"]:
        table.add_row("spent", _effort_line(facts["effort"]))
    if facts["idle_at_the_end"]:
        idle = hours_text(facts["idle_at_the_end"], facts["effort"]["unit"])
        table.add_row("idle", f"{idle} after the last shard was claimed: shorter shards end together")
    if facts["starving"]:
        table.add_row("bound", _starving_line(facts["starving"], facts["effort"]["unit"]))
    if facts["compared"]:
        table.add_row("compared", pilot_status.compared_line(facts["compared"]))
    table.add_row("slots", _slot_line(facts["slots"]) + _ended_unseen(facts))
    for number, row in enumerate(facts["slow"][:4]):
        table.add_row("slow" if number == 0 else "", _slow_line(row, facts["effort"]["unit"]))
    parts: list[Any] = [head, table]
    for title, group in (("paused", facts["paused"]), ("cancelled", facts["cancelled"])):
        if group is not None:
            parts.append(Text(printable(f"{title}: {group}"), style="yellow"))
    if len(facts["effort"]["by_kind"]) > 1:
        parts += [_hours_table(facts["effort"]), Text(facts["effort"]["accounted"]["what"], style="dim")]
    for service, engines in facts["waiting"].items():
        said = f"waiting: {engines} engines: {service} (a slot is requeued after map.away_s)"
        parts.append(Text(printable(said), style="yellow"))
    for event in facts["unsent"]:
        said = f"webhook: nobody has confirmed {event} yet: slots that end send it, so does a look with ${VARIABLE}"
        parts.append(Text(said, style="yellow"))
    parts += [Text(printable(line), style="red") for line in facts["hurt"]]
    for node, reason in facts["excluded"].items():
        parts.append(Text(printable(f"excluded: {node}: {reason}"), style="yellow"))
    notes = {r.removeprefix("ok: "): n for r, n in facts["reasons"].items() if r.startswith("ok: ")}
    if without := {r: n for r, n in facts["reasons"].items() if not r.startswith("ok: ")}:
        parts.append(_reason_table("no result", without))
    if notes:
        parts.append(_reason_table("noted", notes))
    if facts["damaged"]:
        parts.append(_group_table("damaged", "shards", facts["damaged"]))
        path = short(Path(facts["path"]))
        parts.append(Text(f"list them: python -m hpc.status {path} --damaged"))
        parts.append(Text(f"once their files are replaced: python -m hpc.rerun {path} --shards ID,ID"))
    if facts["engine_deaths"]:
        parts.append(_reason_table("engine deaths", facts["engine_deaths"]))
    if facts["failures"]:
        parts.append(_group_table("failed", "shards", facts["failures"]))
        parts.append(Text(f"rerun them: python -m hpc.rerun {short(Path(facts['path']))}"))
    if facts["lost"]:
        what, command = lost.message_and_command(facts["lost"], facts["path"])
        parts += [Text(printable(what), "red"), Text(printable(command))]
    parts += [Text(printable(line), style="red") for line in facts["nothing"]]
    return Group(*parts)


def _shard_bar(shards: dict[str, int]) -> Text:
    damaged = f" ({shards['damaged']:,} damaged)" if shards["damaged"] else ""
    bar = terminal.bar(shards["done"], shards["total"])
    bar.append(f"\n{shards['done']:,} of {shards['total']:,} done{damaged}")
    for name in ("running", "open"):
        if shards[name]:
            bar.append(f" · {shards[name]:,} {name}")
    if shards["failed"]:
        bar.append(f" · {shards['failed']:,} failed", style="red")
    return bar


def _samples(samples: dict[str, int], left_known: bool) -> str:
    line = " · ".join(f"{samples[s]:,} {s}" for s in STATUSES if samples[s] or s == "ok")
    finished = sum(samples[s] for s in STATUSES)
    if finished:
        line += f" · {100 * (1 - samples['ok'] / finished):.2f} % not ok"
    return line + (f" · {samples['left']:,} left" if samples["left"] and left_known else "")


def _rate_line(facts: dict[str, Any]) -> str:
    if not facts["rate"]:
        return "nothing finished yet"
    line = " · ".join(f"{rate:,.1f} samples/s ({window})" for window, rate in facts["rate"].items())
    if facts["eta_range_s"] is None:
        return line
    first, last = (duration(seconds) for seconds in facts["eta_range_s"])
    return line + (f" · {first} left at this rate" if first == last else f" · {first} to {last} left at these rates")


def _effort_line(effort: dict[str, Any]) -> str:
    def said(hours: float, cost: float | None) -> str:
        money = "" if cost is None else f" · {effort['currency']}{cost:,.2f}"
        return hours_text(hours, effort["unit"]) + money

    line = said(effort["hours"], effort["cost"])
    if effort["hours_left"] is not None:
        line += f" · left: {said(effort['hours_left'], effort['cost_left'])}"
    if effort["times_foreseen"] is not None:
        line += f" · {effort['times_foreseen']:.2f} times the hours that its forecast's rate says"
        line += " (start-up, waiting and losses come on top of a rate)" if effort["times_foreseen"] > 1.5 else ""
    return line


def _hours_table(effort: dict[str, Any]) -> Table:
    """Where the hours went, a line for each kind."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    for _ in range(3):
        made.add_column(justify="right", no_wrap=True)
    made.add_column(overflow="fold")
    for number, spent in enumerate(effort["by_kind"].values()):
        money = "" if spent["cost"] is None else f"{effort['currency']}{spent['cost']:,.2f}"
        share = f"{100 * spent['hours'] / (effort['hours'] or 1.0):.1f} %"
        of_kind = (hours_text(spent["hours"], effort["unit"]), share, money)
        made.add_row("hours" if number == 0 else "", *of_kind, spent["what"])
    return made


def _starving_line(starving: dict[str, Any], unit: str) -> str:
    waited = f"{100 * starving['waited']:.0f} %"
    if starving["bound"] == "engines":
        return f"by engines: they waited {waited} of their time for input"
    line = f"by input: engines waited {waited} of their time for samples to be read and decoded"
    if node := starving["node"]:
        engines = f"{node['engines']} {unit}{'s' * (node['engines'] != 1)}"
        # of nodes whose slots all belong to older launches no heartbeat is read, and so no number of cores
        has = f"has {node['cpus']} cores for {engines}" if node["cpus"] else f"with {engines}"
        line += f"; {printable(node['node'])} {has} ({100 * node['waited']:.0f} %)"
    return line


def _slow_line(row: dict[str, Any], unit: str) -> str:
    where = printable(row["node"]) + (f" {unit} {row['engine']}" if row["engine"] else "")
    if "deaths" in row:
        return f"{where}: its engine died {row['deaths']} time{'s' * (row['deaths'] != 1)} ({printable(row['reason'])})"
    return f"{where}: {row['rate']:,.1f} samples/s a {unit} ({100 * row['of_median']:+.0f} % of the median)"


def _slot_line(slots: dict[str, Any]) -> str:
    said = " · ".join(f"{n} {state}" for state, n in sorted(slots["states"].items())) or "none has started"
    return said + terminal.in_queue(slots["squeue"], slots["waits_for"])


def _ended_unseen(facts: dict[str, Any]) -> str:
    """Where to look when jobs were submitted, none of their slots has ever spoken, and squeue lists none any more."""
    slots = facts["slots"]
    if not facts["jobs"] or slots["states"] or slots["squeue"]:
        return ""
    return f", and squeue lists no job of it: python -m hpc.logs {short(Path(facts['path']))}"


def _reason_table(title: str, reasons: dict[str, int], limit: int = 8) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, (reason, count) in enumerate(list(reasons.items())[:limit]):
        table.add_row(title if number == 0 else "", f"{count:,}", Text(printable(reason)))
    if len(reasons) > limit:
        table.add_row("", "", f"and {len(reasons) - limit} more reasons (--by error)")
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
        table.add_row(
            title if number == 0 else "", f"{group['count']:,}", Text(printable(reason)), Text(printable(example))
        )
    if len(ordered) > limit:
        table.add_row("", "", f"and {len(ordered) - limit} more reasons (--by error)", "")
    return table
