"""The page of pilots side by side."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpc import config as configs
from hpc.base.errors import Exit
from hpc.map.launch import prepare, record
from hpc.operator import Item, Row
from hpc.run import column as columns
from hpc.run import pilot
from hpc.run.directory import Run
from hpc.run.segments import Segments, Writer
from recap import pilots
from tests.map.test_pilot import Talking
from tests.support.jobs import EchoJob


def made(job: EchoJob, name: str, prefix: str, odd_every: int, samples: int = 4000) -> Run:
    """A pilot whose rows are saved: each `odd_every`th is odd."""
    task = prepare(configs.load(job.config_file, [f"name={name}", f"prefix={prefix}", f"pilot={samples}"]))
    submission = record(task)
    assert task.pilot
    operator = task.operator
    assert isinstance(operator, Talking)
    target = columns.schema(operator.column(), submission.identity)
    for shard in pilot.shards(task.run, submission):
        found = pilot.items(operator, shard, task.pilot.blocks[shard.id])
        items = [item for item in found if isinstance(item, Item)]
        task.run.segments(submission.identity, shard.id, 0).parent.mkdir(parents=True, exist_ok=True)
        writer = Writer(Segments(task.run.segments(submission.identity, shard.id, 0)).path(0), [])
        for item in items:
            text = f"{prefix} <b>{item.payload}</b>"
            lint = ["cut"] if item.index % odd_every == 0 else None
            values = {"text": text, "tokens": len(text), "lint": lint}
            row = Row(shard.id, item.index, item.key, values=values)
            writer.append([(item.index, columns.to_table([row], target))], sync=False)
        writer.close()
    return task.run


@pytest.fixture
def job(tmp_path: Path) -> EchoJob:
    lines = {f"s{at}": [f"line {line}" for line in range(20)] for at in range(10)}
    return EchoJob(tmp_path, lines, operator="tests.map.test_pilot.Talking")


def test_two_prompts_over_the_same_samples(job: EchoJob, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = made(job, "one", "a", 2, 160), made(job, "two", "four", 4, 120)
    assert one.latest().identity != two.latest().identity
    assert pilots.main([str(one.path), str(two.path), "--samples", "5"]) == Exit.COMPLETE
    page = (one.path / "pilots.html").read_text()
    assert "120 samples of 6 shards that all of them have" in page
    odd = re.search(r"<td>lint: cut<td class=n>(.*?)<td class=n>(.*?)<td class=n>(.*?)</tr>", page)
    assert odd and odd.groups() == ("50.00 %", "25.00 %", "-25.00 %")
    tokens = re.search(r"<td>tokens a caption<td class=n>(.*?)<td class=n>(.*?)<td class=n>(.*?)</tr>", page)
    assert tokens and tokens[3] == "+3.0"
    assert "<script" not in page and "<b>line" not in page and page.count('class="card"') == 5
    assert all(page.count(f">{name}</text>") == 1 for name in ("one", "two"))  # of the plot
    assert pilots.main([str(one.path)]) == Exit.COMPLETE
    assert "160 samples of 8 shards" in (one.path / "pilots.html").read_text()


def test_differences_come_with_how_sure_they_are(job: EchoJob) -> None:
    one, two = made(job, "one", "a", 2, 200), made(job, "two", "four", 3, 200)
    sides = [pilots.units(side, pilots.in_all([side])) for side in (pilots.read(one.path), pilots.read(two.path))]
    (line,) = [line for line in pilots.lines(sides) if line.name == "lint: cut"]
    difference, half = line.difference(sides[1], sides[0])
    assert difference == pytest.approx(7 / 20 - 0.5) and half == pytest.approx(0.0)  # in all shards alike
    sides[1]["s3"].lint["cut"] += 7
    _, half = line.difference(sides[1], sides[0])
    assert half == pytest.approx(1.96 * 0.35 / 10, rel=1e-6)


def test_what_is_no_pilot(job: EchoJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(prepare(configs.load(job.config_file, ["name=full"])))
    assert pilots.main([str(tmp_path / "runs" / "full")]) == Exit.USAGE
    assert "has had no pilot" in capsys.readouterr().err
    assert pilots.main([str(tmp_path)]) == Exit.USAGE
    record(prepare(configs.load(job.config_file, ["name=new", "pilot=100"])))
    assert pilots.main([str(tmp_path / "runs" / "new")]) == Exit.USAGE
    assert "no sample of the pilot" in " ".join(capsys.readouterr().err.split())
    other = EchoJob(tmp_path / "b", {"other": ["x"] * 20}, operator="tests.map.test_pilot.Talking")
    runs = made(job, "one", "a", 2, 40), made(other, "two", "a", 2, 20)
    assert pilots.main([str(run.path) for run in runs]) == Exit.USAGE
    assert "no sample in common" in " ".join(capsys.readouterr().err.split())
    assert pilots.main([str(runs[0].path), "--out", str(tmp_path / "none" / "x.html")]) == Exit.USAGE
    assert "cannot be written" in " ".join(capsys.readouterr().err.split())
