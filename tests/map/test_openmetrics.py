"""`hpc.status --openmetrics`, as prometheus_client's parser reads it: kills, reruns, other identities, any text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from hpc.base import heartbeat, journal
from hpc.map import counters, openmetrics
from hpc.run.directory import Run
from tests.support.jobs import ROOT, EchoJob, inline, texts, wait_for

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(run: Run) -> Series:
    done = inline("hpc.status", str(run.path), "--openmetrics")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return parsed(done.stdout)


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted({"run": "job", **labels}.items()))]


class Scraper:
    """Looks again and again; no counter may ever fall, or be forgotten."""

    def __init__(self, run: Run) -> None:
        self.run, self.before, self.looks = run, Series(), 0

    def look(self) -> Series:
        now = scrape(self.run)
        for at, known in self.before.items():
            if at[0].endswith("_total"):
                assert now.get(at, -math.inf) >= known, (at, known, now.get(at))
        self.before = now
        self.looks += 1
        return now


def summed(run: Run) -> int:
    """Samples that the journals name as newly saved."""
    events = [event for path in run.journals.glob("*.jsonl") for event in journal.read(path)[0]]
    return sum(sum(e["counts"].values()) for e in events if e["event"] == "segment" and not e["adopted"])


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EchoJob]:
    lines = {"a": texts(30), "b": [*texts(10), "wait", *texts(9)], "c": ["unreadable", *texts(9)]}
    echo = EchoJob(tmp_path, lines, delay_s=0.005, batch=1, map={"attempts": 1})
    yield echo
    echo.close()


@pytest.mark.slow(ci=True)
def test_counters_grow_through_a_kill_a_rerun_and_another_identity(job: EchoJob) -> None:
    job.submit()
    scraper = Scraper(job.run)
    assert value(scraper.look(), "hpc_samples_produced_total", status="ok") == 0
    first = job.worker()
    # All whole blocks of 8 before the line that waits are saved, so that the kill hits between two saves.
    wait_for(lambda: value(scraper.look(), "hpc_samples_produced_total", status="ok") >= 38)
    alive = scraper.look()
    assert value(alive, "hpc_engine_seconds_total") > 0 and value(alive, "hpc_complete") == 0
    first.kill()
    first.wait()
    assert value(scraper.look(), "hpc_slot_restarts_total") == 0
    (job.inputs / "go").touch()
    assert job.work() == 2  # c failed
    ended = scraper.look()
    assert value(ended, "hpc_slot_restarts_total") == 1 and value(ended, "hpc_slot_starts_total") == 2
    assert value(ended, "hpc_shards", state="done") == 2 and value(ended, "hpc_shards", state="failed") == 1
    assert value(ended, "hpc_failed") == 1 and value(ended, "hpc_shards_published_total") == 2
    (reason,) = [dict(labels)["reason"] for name, labels in ended if name == "hpc_attempts_failed_total"]
    assert reason == "input: unreadable"
    assert summed(job.run) == sum(v for (name, _), v in ended.items() if name == "hpc_samples_produced_total") >= 50
    (job.run.path / "tally" / "work.json").write_text("not ours")  # the cache
    assert scraper.look() == ended
    assert inline("hpc.rerun", str(job.run.path), "--shards", "a,c", "--no-submit").returncode == 0
    assert value(scraper.look(), "hpc_failed") == 0  # what is open again has not failed
    told = sum(beat["time"]["seconds"]["work"] for beat in heartbeat.read_all(job.run.slots))
    (job.inputs / "c.txt").write_text("\n".join(texts(10)))
    job.submit("prefix=x", supersede=True)  # another identity
    reopened = scraper.look()
    assert value(reopened, "hpc_shards", state="open") == 3
    assert job.work() == 0
    final = scraper.look()
    assert value(final, "hpc_complete") == 1 and value(final, "hpc_samples", status="ok") == 60
    produced = value(final, "hpc_samples_produced_total", status="ok")
    assert produced == value(ended, "hpc_samples_produced_total", status="ok") + 60
    assert value(final, "hpc_shards_published_total") == 5
    times = {dict(labels)["kind"]: v for (name, labels), v in final.items() if name == "hpc_engine_time_seconds"}
    assert told > 0 and times["start"] > 0
    assert times["redone"] > 0.99 * told, "what another identity has made counts no more"


def write(run: Run, life: str, *events: dict[str, object]) -> None:
    with open(run.journals / f"{run.latest().uuid}-{life}.jsonl", "ab") as file:
        for event in events:
            file.write(json.dumps(event).encode() + b"\n")


def test_journals_of_any_kind(job: EchoJob) -> None:
    """Reasons with any characters, clocks that jump, damaged lines, tokens, lives without an end, several engines."""
    job.submit()
    reasons = ['a "quote"', "back\\slash", "two\nlines", "\udcff", "déjà vu", '{brace="x"}', ""]
    deaths = [{"t": 100.0 + i, "event": "engine", "died": reason} for i, reason in enumerate(reasons)]
    write(job.run, "0000-0", {"t": 100.0, "event": "start", "engines": 8}, *deaths)
    write(job.run, "0000-0", {"t": 50.0, "event": "done", "shard": "a", "tokens": 7}, {"t": "?", "event": "done"})
    before = scrape(job.run)
    assert value(before, "hpc_engine_seconds_total") == 8 * 56.0
    assert value(before, "hpc_tokens_produced_total") == 7 and value(before, "hpc_shards_published_total") == 1
    shown = {dict(labels)["reason"] for name, labels in before if name == "hpc_engine_deaths_total"}
    assert shown == {'a "quote"', "back\\slash", "two\\x0alines", "\\xdcff", "déjà vu", '{brace="x"}', ""}
    write(job.run, "0000-1", {"t": 9000.0, "event": "start", "engines": 8}, {"t": 9001.0, "event": "stop"})
    assert value(scrape(job.run), "hpc_engine_seconds_total") == 8 * 57.0


def test_tokens_are_those_of_published_rows(tmp_path: Path) -> None:
    import pyarrow as pa

    from hpc.run import column as columns

    for kind, tokens, expected in (
        (pa.int32(), [3, None, 4], 7), (pa.list_(pa.int32()), [[1], None, [2, 3]], 0), (pa.int32(), [None] * 3, 0),
    ):  # fmt: skip
        table = pa.table(
            {"key": ["a", "b", "c"], "tokens": pa.array(tokens, kind), "status": ["ok"] * 3, "reason": [""] * 3}
        )
        file = tmp_path / "columns" / "x" / "y" / "file.parquet"
        (tmp_path / "columns").mkdir(exist_ok=True)
        columns.write(file, [table], table.schema)
        assert columns.inspect(file).tokens == expected


def test_a_folder_gives_its_map_runs_and_names_the_others(job: EchoJob, tmp_path: Path) -> None:
    job.submit()
    training = Run(tmp_path / "runs" / "train")
    training.make()
    cluster = {"kind": "local", "gpus_per_node": 0, "engines_per_node": 1}
    config = {"cluster": cluster, "map": {"drain_s": 1, "allow_failed": 0}, "name": "train", "trainer": "a.B"}
    facts = {"plan": "", "identity": "i", "column": "", "code": "", "slots": 1, "source": ""}
    training.new_submission(config=config, **facts)
    both = inline("hpc.status", str(tmp_path / "runs"), "--openmetrics")
    assert both.returncode == 0 and both.stderr == "train is no map run: left out\n"
    assert {dict(labels)["run"] for _, labels in parsed(both.stdout)} == {"job"}
    alone = inline("hpc.status", str(training.path), "--openmetrics")
    assert alone.returncode == 64 and not alone.stdout and "of map runs" in alone.stderr
    assert inline("hpc.status", str(tmp_path / "nothing"), "--openmetrics").returncode == 64


def test_the_dashboard_asks_for_what_is_there() -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana_dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    known = {f"{name}_total" if kind == "counter" else name for name, (kind, _, _) in openmetrics.FAMILIES.items()}
    names = set(re.findall(r"hpc_\w+", " ".join(asked)))
    assert names <= known and len(names) > 10
    for expression in asked:  # a counter is read through rate or increase, but where the sum itself is shown
        for name in re.findall(r"hpc_\w+_total", expression):
            assert re.search(rf"(rate|increase)\({name}|{name}\{{[^}}]*}} / 3600", expression), expression


def test_work_of_a_run_without_journals(tmp_path: Path) -> None:
    total = counters.count(Run(tmp_path / "none"))
    assert (total.lives, total.engine_seconds, total.sums.shards) == (0, 0.0, 0)
