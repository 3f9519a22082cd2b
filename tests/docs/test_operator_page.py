"""The operator of docs/operators.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq

from hpc.base.errors import Exit
from tests.support.jobs import command

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()


def test_the_operator_of_the_page_runs(tmp_path: Path) -> None:
    blocks = dict(re.findall(r"^```(python|yaml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    (tmp_path / "mean_colour.py").write_text(blocks["python"])
    config = tmp_path / "mean_colour.yaml"
    config.write_text(blocks["yaml"])
    tars = "data.shards=[recap/demo/flags/00000.tar]"
    done = command("hpc.launch", str(config), f"runs={tmp_path}", tars, "map.min_free_gb=0", PYTHONPATH=str(tmp_path))
    assert done.returncode == Exit.COMPLETE, done.stdout + done.stderr
    (file,) = (tmp_path / "colours" / "columns").rglob("*.parquet")
    table = pq.read_table(file)
    assert set(table["status"].to_pylist()) == {"ok"} and len(set(table["red"].to_pylist())) > 10
    assert command("hpc.verify", str(tmp_path / "colours"), "--full", PYTHONPATH=str(tmp_path)).returncode == 0
