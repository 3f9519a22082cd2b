"""What a run costs and where it is slow: hours, money, rates by node and engine. From journals and heartbeats.

Spans and rates are taken within one machine's clock; machines are compared by rates only.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

from hpc.config import ClusterConfig
from hpc.map.engine_time import INPUT, REDONE, WORK
from hpc.map.life import ENDED, Life, cluster_of
from hpc.map.tally import Totals
from hpc.run.directory import Submission
from hpc.run.journal_reader import Activity, JournalReader

SLOW = 0.85  # of the median rate of an engine, under which a node or an engine is called slow
LEAST_MINUTES = 5  # of work that a rate needs before it is compared
WINDOW = 15  # minutes
LEAST_SECONDS = 2.0  # of work and waiting, under which no share of it is shown


def unit(cluster: ClusterConfig) -> str:
    """Whose hours are counted: a GPU's, or an engine's."""
    return cluster.unit("engine").removeprefix("CPU ")


def idle_at_the_end(found: list[Life], reader: JournalReader, running: int, now: float) -> float:
    """Hours for which engines were there and had nothing to do after the last shard was claimed: shards are not split.

    Args:
        running: number of shards that are being worked on.
    """
    since = reader.last_claim
    if not since:
        return 0.0
    there = sum(
        life.engines * max(0.0, life.activity.first + life.seconds - max(since, life.activity.first)) for life in found
    )
    busy = sum(end - since for end in reader.ends) + running * max(0.0, now - since)
    return round(max(0.0, there - busy) / 3600, 3)


def spent(found: list[Life], latest: Submission, totals: Totals, speed: float, hours: float) -> dict[str, Any]:
    """Hours of engines (GPUs, where there are any) so far and to come, and money where the profile has a price.

    Args:
        found: lives for the newest launch's identity; speed: samples a second now, 0.0 where nothing runs; hours: of
            all lives of the run.
    """
    own = sum(life.seconds * life.engines for life in found) / 3600
    samples = sum(life.activity.samples for life in found)
    per_hour = samples / own if own else 0.0
    running = sum(life.engines for life in found if life.state not in ENDED)
    left = None
    if totals.left and per_hour:
        left = totals.left / speed * running / 3600 if speed and running else totals.left / per_hour
    cluster = latest.config["cluster"]
    price = cluster.get("price")
    return {
        "unit": unit(cluster_of(latest)),
        "hours": round(hours, 9),
        "hours_left": None if left is None else round(left, 3),
        "samples_per_s": round(per_hour / 3600, 3),  # of one engine, loading of models included
        "times_foreseen": round(3600 * hours * latest.rate / totals.kept, 3) if latest.rate and totals.kept else None,
        "cost": None if price is None else round(hours * price, 2),
        "cost_left": None if price is None or left is None else round(left * price, 2),
        "currency": cluster.get("currency", "$"),
    }


def _recent(activity: Activity, now: float) -> dict[str, float]:
    """Samples a second by engine, over the whole minutes of the window in which it worked. {} where these are few."""
    end = min(int(now), int(activity.last)) // 60  # the minute under way is not over
    rates = {}
    for engine, minutes in activity.minutes.items():
        seen = [m for m in minutes if end - WINDOW <= m < end]
        if seen and end - min(seen) >= LEAST_MINUTES:
            rates[engine] = sum(minutes[m] for m in seen) / (60.0 * (end - min(seen)))
    return rates


def nodes(found: list[Life], now: float) -> list[dict[str, Any]]:
    """By node: slots, engines, CPUs, samples, rate of an engine, the share of their time that engines waited for input
    (lately, where any lives), deaths of engines, failed attempts, hours.
    """
    by_host: dict[str, list[Life]] = {}
    for life in found:
        by_host.setdefault(life.host, []).append(life)
    rows = []
    for host, there in sorted(by_host.items()):
        living = [life for life in there if life.state not in ENDED]
        rates = [rate for life in living for rate in _recent(life.activity, now).values()]
        waited = waited_share(living or there)
        rows.append(
            {
                "node": host,
                "slots": len(living),
                "lives": len(there),
                "samples": sum(life.activity.samples for life in there),
                "waited": None if waited is None else round(waited, 4),
                "engines": sum(life.engines for life in living) or max(life.engines for life in there),
                "cpus": max((life.beat.get("cpus") or 0 for life in there), default=0),
                "rate_per_engine": round(statistics.fmean(rates), 3) if rates else None,
                "deaths": sum(sum(life.activity.deaths.values()) for life in there),
                "failures": sum(sum(life.activity.failures.values()) for life in there),
                "hours": round(sum(life.seconds * life.engines for life in there) / 3600, 3),
            }
        )
    return rows


def working_rate(reader: JournalReader, submission: Submission) -> float:
    """Samples a second of one GPU (of one engine without) between its life's first claim and last saved block; 0.0
    where none was saved.
    """
    worked = [life for life in reader.lives.values() if life.samples and life.worked > life.begun]
    seconds = sum(life.worked - life.begun for life in worked) * cluster_of(submission).devices_per_node
    return sum(life.samples for life in worked) / seconds if seconds else 0.0


def waited_share(found: list[Life]) -> float | None:
    """Of the time in which engines worked or waited for input, the share of waiting: lately of those that live, else of
    all of it. None where there was none.
    """
    work = waited = 0.0
    for life in found:
        recent = (life.beat.get("time") or {}).get("recent") if life.state not in ENDED else None
        seconds = recent if isinstance(recent, dict) else life.kinds
        work += seconds.get(WORK, 0.0) + (0.0 if seconds is recent else seconds.get(REDONE, 0.0))
        waited += seconds.get(INPUT, 0.0)
    return waited / (work + waited) if work + waited > LEAST_SECONDS else None


def slow(found: list[Life], now: float) -> list[dict[str, Any]]:
    """Engines well under the median of all, worst first, then engines that died. One row for a node slow as a whole."""
    rates: dict[tuple[str, str], float] = {}
    deaths: Counter[tuple[str, str]] = Counter()
    why: dict[tuple[str, str], str] = {}
    for life in found:
        if life.state in ENDED:
            continue
        for engine, rate in _recent(life.activity, now).items():
            rates[life.host, engine] = rate
        for death, count in life.activity.deaths.items():
            engine, _, reason = death.partition(": ")
            deaths[life.host, engine] += count
            why[life.host, engine] = reason
    rows: list[dict[str, Any]] = []
    middle = statistics.median(rates.values()) if len(rates) > 2 else math.inf
    under = {at: rate for at, rate in rates.items() if middle < math.inf and rate < SLOW * middle}
    for host in sorted({host for host, _ in under}):
        engines = {engine: rate for (h, engine), rate in under.items() if h == host}
        whole = len(engines) == sum(h == host for h, _ in rates) and len(engines) > 1
        for engine, rate in {"": statistics.fmean(engines.values())}.items() if whole else engines.items():
            row = {"node": host, "engine": engine, "rate": round(rate, 3), "of_median": round(rate / middle - 1, 3)}
            rows.append(row)
    rows.sort(key=lambda row: row["rate"])
    for (host, engine), count in deaths.most_common():
        rows.append({"node": host, "engine": engine, "deaths": count, "reason": why[host, engine]})
    return rows
