"""How long a job will take and what it will cost, from rates that were measured: in this run, in another with the same
identity, by a tuning with the same settings (hpc.config.tuned), or given with --rate. There is no built-in rate. The
range is what earlier runs on such nodes made of theirs.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hpc.base.text import duration, hours_text
from hpc.config import Config, tuned
from hpc.map import cost, track_record
from hpc.map.tally import Tally
from hpc.operator import Shard
from hpc.run.directory import Run, Submission
from hpc.run.ledger import DONE

MARKERS = 50  # read for the size of the output
LONG_S = 600.0  # that a shard may take, above which a dry run warns: other engines cannot help with the last ones
FILES_A_SHARD = 4  # claim, its end, marker, column file


@dataclass(frozen=True)
class Measured:
    """What an earlier run did. rate: samples a second of one GPU (without GPUs: of one engine). samples_a_shard,
    bytes_a_sample: means over its finished shards, 0.0 where not known.
    """

    rate: float
    where: str
    samples_a_shard: float = 0.0
    bytes_a_sample: float = 0.0


def measure(run: Run, submission: Submission) -> Measured | None:
    """The rate of one engine between a life's first claim and its last segment; None where nothing was finished."""
    tally = Tally(run, submission, keep=False)
    totals = tally.count()
    rate = cost.working_rate(tally.reader, submission)
    if not rate:
        return None
    worked = [life for life in tally.reader.lives.values() if life.samples]
    hosts, last = {life.host for life in worked}, max(life.worked for life in worked)
    survey = run.ledger(submission.identity).survey()
    done = islice(((i, s.generation) for i, s in survey.items() if s.status == DONE), MARKERS)
    markers = [run.ledger(submission.identity).read(i, f"g{g}.done") for i, g in done]
    rows = sum(m.get("rows", 0) for m in markers)
    day = time.strftime("%Y-%m-%d", time.localtime(last))
    on = min(hosts) if len(hosts) == 1 else f"{len(hosts)} nodes"
    finished = totals.settled.shards[DONE]
    return Measured(
        rate,
        f"measured in {run.name}, {day}, on {on}",
        totals.settled.rows / finished if finished else 0.0,
        sum(m.get("bytes", 0) for m in markers) / rows if rows else 0.0,
    )


def find(config: Config, identity: str) -> Measured | None:
    """The newest measurement with this identity and the same kind of engine: in the run itself, by a tuning with these
    very settings, or in a run beside it.
    """
    gpus = bool(config.run.cluster.gpus_per_node)
    folder = Path(config.directory).parent
    here = [config.directory] if config.directory.is_dir() else []
    beside = sorted(p for p in folder.iterdir() if p != config.directory) if folder.is_dir() else []
    own = next((found for path in here if (found := _measured(path, identity, gpus))), None)
    if own is not None:
        return own
    if (trial := tuned.find(folder, config, identity)) is not None:
        return Measured(trial.rate, trial.where)
    return next((found for path in beside if (found := _measured(path, identity, gpus))), None)


def _measured(path: Path, identity: str, gpus: bool) -> Measured | None:
    """What the newest launch of a run with this identity did, on nodes with GPUs or without."""
    if not (path / "ledger" / identity).is_dir():
        return None
    run = Run(path)
    for submission in reversed(run.submissions()):
        same = submission.identity == identity and bool(submission.config["cluster"]["gpus_per_node"]) == gpus
        if same and (found := measure(run, submission)):
            return found
    return None


def rate_for_launch(config: Config, identity: str, previous: Submission | None, rate: float | None) -> float:
    """The rate that a launch records, so that later forecasts can compare: --rate, else that of the run's previous
    launch with this identity, else what another run has measured. 0.0 where there is none.
    """
    if rate or previous is not None:
        return rate or (previous.rate if previous is not None and previous.identity == identity else 0.0)
    measured = find(config, identity)
    return measured.rate if measured is not None else 0.0


def lines(config: Config, identity: str, shards: list[Shard], slots: int, rate: float | None) -> list[str]:
    """What a dry run says of time, money and space."""
    files = FILES_A_SHARD * len(shards)
    measured = find(config, identity)
    said = [_hours_and_money(config, measured, shards, slots, rate), f"about {files:,} files in the run directory"]
    if measured is not None and measured.bytes_a_sample and (count := samples(shards, measured)):
        said[1] += f", {count * measured.bytes_a_sample / 2**30:,.1f} GiB"
    free = _free_inodes(config.directory)
    if free is not None and free < files:
        said[1] += f". Its file system has room for {free:,}: choose another `runs=`"
    return said


def _free_inodes(path: Path) -> int | None:
    """Free inodes of the file system that will hold the run; None where it does not say, or has no limit."""
    while not path.exists():
        path = path.parent
    facts = os.statvfs(path)
    return facts.f_favail if facts.f_files else None


def samples(shards: list[Shard], measured: Measured | None) -> float:
    """Samples of all shards. An unknown count is taken to be the mean of the others, or of an earlier run."""
    known = [s.expected for s in shards if s.expected is not None]
    a_shard = sum(known) / len(known) if known else measured.samples_a_shard if measured else 0.0
    return sum(known) + a_shard * (len(shards) - len(known))


def _hours_and_money(
    config: Config, measured: Measured | None, shards: list[Shard], slots: int, rate: float | None
) -> str:
    """Hours and money."""
    cluster = config.run.cluster
    unit = cost.unit(cluster)
    if rate is None and measured is None:
        return f"unknown: no run with this identity beside this one. Say --rate SAMPLES_PER_SECOND_PER_{unit.upper()}"
    count = samples(shards, measured)
    if not count:
        return "unknown: the shards' numbers of samples are not known (data.expected), nor is there a finished run"
    speed = rate if rate is not None else measured.rate if measured else 0.0
    where = "--rate" if rate is not None else measured.where if measured else ""
    engines = cluster.devices_per_node
    at_once = min(slots, cluster.parallel or slots)
    hours = count / speed / 3600
    known = track_record.past_runs(Path(config.directory).parent, config.resolved["cluster"])
    low, high = (hours * times for times in track_record.factors(known) or (1.0, 1.0))
    nodes = f"on {at_once} {'node' if at_once == 1 else 'nodes'}"
    lasts = _from_to(duration(3600 * low / engines / at_once), duration(3600 * high / engines / at_once))
    spent = _from_to(hours_text(low, unit), hours_text(high, unit))
    text = f"{speed:,.1f} samples/s per {unit} ({where}) → {'' if known else 'at least '}{spent} ≈ {lasts} {nodes}"
    if cluster.price is not None:
        money = _from_to(*(f"{cluster.currency}{end * cluster.price:,.2f}" for end in (low, high)))
        text += f" · {money} at {cluster.price:.2f}/h"
    text += f": {_past_runs_text(known)}"
    return text + _long_shards(shards, measured, speed, engines * at_once, unit)


def _from_to(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _past_runs_text(known: list[track_record.PastRun]) -> str:
    """How the hours of earlier runs compare with those that their rates promised, for people."""
    if not known:
        return "no earlier run here, on this kind of nodes, tells what is lost to start-up, waiting and failures"
    best, worst = (f"{extreme(run.times for run in known):.2f}" for extreme in (min, max))
    runs = "1 earlier run" if len(known) == 1 else f"{len(known)} earlier runs"
    times = f"{_from_to(best, worst)} times the hours of their rate"
    return f"{runs} on this kind of nodes took {times} (last: {known[0].run})"


def _long_shards(shards: list[Shard], measured: Measured | None, speed: float, engines: int, unit: str) -> str:
    """A warning where the last shards keep the other engines waiting; "" where shards are short."""
    known = [s.expected for s in shards if s.expected is not None]
    seconds = max(known, default=measured.samples_a_shard if measured else 0.0) / speed
    if seconds <= LONG_S or engines < 2:
        return ""
    return (
        f". A shard takes up to {duration(seconds)}: at the end each of {engines:,} {unit}s is idle for half of that, "
        f"{hours_text(seconds * engines / 7200, unit)}. Shards of {max(int(LONG_S * speed), 1):,} samples keep it "
        f"under {duration(LONG_S)}"
    )
