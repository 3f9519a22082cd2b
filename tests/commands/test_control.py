"""What a user types while a run goes on: detached launch, status by node, slot and error, logs, cancel, forecast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.base import heartbeat
from hpc.base.errors import Exit
from hpc.run.directory import Run
from hpc.run.ledger import DONE
from recap.worlds.tars import write_tar
from tests.support.jobs import wait_for

ROOT = Path(__file__).resolve().parents[2]


class Terminal:
    """Commands over one run of made-up captions, 40 ms each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, Run(folder / "runs" / "r")
        (folder / "in").mkdir()
        for shard in range(8):
            with open(folder / "in" / f"{shard:05d}.tar", "wb") as file:
                write_tar(file, [(f"{shard}{i:03d}", {"jpg": b"%d %d" % (shard, i)}) for i in range(40)])
        self.config = folder / "c.yaml"
        self.config.write_text(
            f"name: r\nruns: {folder}/runs\noperator: tests.support.instant.InstantOperator\n"
            f"captioner: {{model: 'instant:0.2'}}\ndata: {{shards: [{folder}/in]}}\n"
            "cluster: {kind: local, slots: 2, price: 3.6}\nmap: {lease_s: 3, segment: 8, drain_s: 10, attempts: 1}\n"
        )

    def __call__(self, module: str, *arguments: str, code: int | None = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "150"}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, timeout=240
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def done(self) -> int:
        survey = self.run.ledger(self.run.latest().identity).survey(self.run.generations.opened())
        return sum(state.status == DONE for state in survey.values())


@pytest.mark.slow
def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    type_ = Terminal(tmp_path)
    run, config = str(type_.run.path), str(type_.config)
    broken = tmp_path / "in" / "00004.tar"
    whole = broken.read_bytes()

    said = type_("hpc.launch", config, "--dry-run")
    assert "forecast  unknown: no run with this identity beside this one. Say --rate SAMPLES_PER_SECOND" in said
    said = type_("hpc.launch", config, "--dry-run", "--rate=2", "data.expected=none")
    assert "the shards' numbers of samples are not known" in said
    assert not type_.run.path.exists()

    assert "started in the background" in type_("hpc.launch", config, "--detach")
    broken.write_bytes(whole + bytes(512))  # it is not the file that was planned any more
    wait_for(lambda: type_.done() >= 2)
    facts = json.loads(type_("hpc.status", run, "--json", code=None))
    assert facts["effort"]["unit"] == "engine"
    assert facts["effort"]["cost"] == pytest.approx(3.6 * facts["effort"]["hours"], abs=0.01)
    assert [row["node"] for row in facts["nodes"]] == [facts["slots"]["list"][0]["host"]]
    by_slot = type_("hpc.status", run, "--by", "slot", code=None)
    assert by_slot.count("running") >= 2

    said = type_("hpc.cancel", run)
    assert "stopped. To go on" in said
    assert heartbeat.alive_here(type_.run.slots) == []
    assert 2 <= type_.done() < 8
    assert "cancelled by" in type_("hpc.logs", run, "--slot", "1")
    history = type_("hpc.logs", run, "--shard", "00000")
    assert next(line.split()[4] for line in history.splitlines() if " g=0 " in line) == "claim"
    assert " done " in history

    said = type_("hpc.launch", config, code=Exit.USAGE)
    assert "1 have another size" in said
    broken.write_bytes(whole)
    os.utime(broken, (1e9, 1e9))
    type_("hpc.launch", config, "--supersede", "captioner.model=instant:0.04")
    assert type_.done() == 8

    said = type_("hpc.launch", config, "--dry-run", "name=another")
    assert "measured in r, " in said
    assert "samples/s per engine" in said
    rate = float(said.split("forecast  ")[1].split(" ")[0])
    assert 5 < rate < 25, "40 ms a caption are at most 25 a second"
    assert "$" in said
    assert "about 32 files in the run directory, 0.0 GiB" in said
    assert not (tmp_path / "runs" / "another").exists()


def test_what_failed_is_found_in_the_logs(tmp_path: Path) -> None:
    type_ = Terminal(tmp_path)
    run, config = str(type_.run.path), str(type_.config)
    type_("hpc.launch", config, "--no-submit", "captioner.model=instant")
    (tmp_path / "in" / "00003.tar").write_bytes(b"changed")
    type_("hpc.worker", run, "--slot", "0", code=Exit.SOME_FAILED)
    by_error = type_("hpc.status", run, "--by", "error", code=Exit.SOME_FAILED)
    assert "failed shards" in by_error
    assert "input: changed since the plan" in by_error
    said = type_("hpc.logs", run, "--failed")
    assert said.startswith("00003: input: changed since the plan\n")
    assert "had 51,200 bytes, now 7" in said


COMMANDS = ["hpc.status", "hpc.cancel", "hpc.logs", "hpc.map.forecast", "recap.export", "recap.report"]


@pytest.mark.parametrize("module", COMMANDS)
def test_commands_start_without_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=240)
