"""The operator and the trainer of docs/operators.md, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from hpc.base.errors import Exit
from tests.support.jobs import command

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()


def blocks(title: str) -> list[str]:
    """The python and yaml of a part of the page."""
    part = re.split(r"^# ", PAGE, flags=re.MULTILINE)
    (found,) = (text for text in part if text.startswith(title))
    return [block for _, block in re.findall(r"^```(python|yaml)\n(.*?)^```", found, re.MULTILINE | re.DOTALL)]


def test_the_operator_is_forty_lines() -> None:
    code, _ = blocks("Write an operator")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40


def test_the_operator_of_the_page_runs(tmp_path: Path) -> None:
    code, settings = blocks("Write an operator")
    (tmp_path / "mean_colour.py").write_text(code)
    config = tmp_path / "mean_colour.yaml"
    config.write_text(settings)
    tars = "data.shards=[recap/demo/flags/00000.tar]"
    done = command("hpc.launch", str(config), f"runs={tmp_path}", tars, "map.min_free_gb=0", PYTHONPATH=str(tmp_path))
    assert done.returncode == Exit.COMPLETE, done.stdout + done.stderr
    (file,) = (tmp_path / "colours" / "columns").rglob("*.parquet")
    table = pq.read_table(file)
    assert set(table["status"].to_pylist()) == {"ok"} and len(set(table["red"].to_pylist())) > 10
    assert command("hpc.verify", str(tmp_path / "colours"), "--full", PYTHONPATH=str(tmp_path)).returncode == 0


@pytest.mark.slow
def test_the_trainer_of_the_page_learns(tmp_path: Path) -> None:
    trainer, task, settings = blocks("Write a trainer")
    (tmp_path / "line.py").write_text(trainer)
    (tmp_path / "line_task.py").write_text(task)
    (tmp_path / "line.yaml").write_text(settings)
    done = command("hpc.launch", str(tmp_path / "line.yaml"), f"runs={tmp_path}", PYTHONPATH=str(tmp_path))
    assert done.returncode == Exit.COMPLETE, done.stdout + done.stderr
    weights = load_file(tmp_path / "line/exports/final/line.safetensors")
    assert abs(weights["line.weight"].item() - 3) < 0.1 and abs(weights["line.bias"].item() - 1) < 0.1
