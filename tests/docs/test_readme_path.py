"""The user's path of the README, command by command, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

ROOT = Path(__file__).parents[2]


def path() -> str:
    """The commands of the README's block under "Your images, your model, your cluster"."""
    section = (ROOT / "README.md").read_text().partition("## Your images")[2]
    return re.split(r"^```\n", section, flags=re.MULTILINE)[1]


def test_the_path_has_its_five_steps() -> None:
    steps = re.findall(r"^# (\d)\. (\w+)", path(), re.MULTILINE)
    assert steps == [("0", "tars"), ("1", "caption"), ("2", "look"), ("3", "export"), ("4", "fine"), ("5", "CLIP")]


@pytest.mark.slow  # two CPU-minutes
@pytest.mark.timeout(1200)
def test_the_path_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "recap" / "demo", tmp_path / "recap" / "demo")  # models and flags
    search = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": search}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", path()], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = ds.dataset(tmp_path / "out" / "data").to_table(["key", "re_caption", "org_caption"]).to_pylist()
    assert len({row["key"] for row in rows}) == 128 and all(row["re_caption"] for row in rows)
    lines = (tmp_path / "runs" / "clip" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses[-1] < losses[0]
    assert (tmp_path / "runs" / "again" / "columns").is_dir()
