"""Launches over inputs that are missing, grow and change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit
from hpc.run.directory import Run
from recap.worlds.tars import write_tar
from tests.data.test_inputs import ROOT


class Launches:
    """`hpc.launch` over the tars of one folder, with captions that are made up at once."""

    def __init__(self, folder: Path) -> None:
        self.data, self.run = folder / "in", Run(folder / "runs" / "r")
        self.data.mkdir()
        self.config = folder / "config.yaml"
        self.config.write_text(
            f"name: r\nruns: {folder}/runs\noperator: tests.support.instant.InstantOperator\n"
            "captioner: {model: instant}\n"
            "cluster: {kind: local}\nmap: {lease_s: 3}\n"
        )

    def shard(self, *numbers: int, size: int = 10) -> None:
        for number in numbers:
            with open(self.data / f"{number}.tar", "wb") as file:
                write_tar(file, [(f"{number}{i}", {"jpg": bytes([number, i]) * size}) for i in range(3)])

    def __call__(self, last: int, *flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "hpc.launch", str(self.config), f"data.shards=[{self.data}/{{0..{last}}}.tar]"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, timeout=240)
        return done.returncode, done.stdout + done.stderr

    def states(self) -> dict[str, tuple[str, int]]:
        survey = self.run.ledger(self.run.latest().identity).survey(self.run.generations.opened())
        return {shard: (state.status, state.generation) for shard, state in sorted(survey.items())}


@pytest.mark.slow
def test_missing_growing_and_changing_inputs(tmp_path: Path) -> None:
    """One run: a shard is missing and accepted, comes later and another with it, one changes, two go."""
    launch = Launches(tmp_path)
    launch.shard(0, 1)
    code, said = launch(2)
    assert code == Exit.USAGE
    assert "1 of 3 shards do not exist" in said
    assert "--allow-missing" in said
    assert not launch.run.path.exists()
    code, said = launch(2, "--allow-missing")
    assert code == Exit.SOME_FAILED, said
    assert "input: missing" in said
    assert launch.states() == {"0": ("done", 0), "1": ("done", 0), "2": ("failed", 0)}
    launch.shard(2, 3)
    code, said = launch(3)
    assert code == Exit.COMPLETE, said
    assert "2 of 4 shards are done" in said
    assert launch.states() == {"0": ("done", 0), "1": ("done", 0), "2": ("done", 1), "3": ("done", 0)}
    launch.shard(1, size=3000)
    code, said = launch(3)
    assert code == Exit.USAGE
    assert "1 have another size" in said
    code, said = launch(3, "--supersede")
    assert code == Exit.COMPLETE, said
    assert launch.states()["1"] == ("done", 1)
    marker = launch.run.ledger(launch.run.latest().identity).read("1", "g1.done")
    assert "A picture of 6000 bytes." in pq.read_table(launch.run.path / marker["file"])["caption"].to_pylist()
    code, said = launch(1)
    assert code == Exit.USAGE
    assert "2 shards are gone" in said
