"""What stops a slot, a node or a run on purpose; full disks; output on an object store; samples that are done again
alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from hpc import config as configs
from hpc.base.errors import Exit, ShardError
from hpc.base.heartbeat import read_all
from hpc.map import breaker
from hpc.map import launch as map_launch
from hpc.operator import FAILED, Damage, Item, Row, Shard
from hpc.run.directory import Run, Submission
from hpc.run.published import Published
from tests.support.echo import Echo, EchoConfig

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class FaultyConfig(EchoConfig):
    bad_host: str = field(default="", metadata={"execution": True})  # where nothing can be read
    service: str = field(
        default="", metadata={"execution": True}
    )  # a file; lines "service" fail transiently without it
    model: str = field(default="good", metadata={"execution": True})  # bad: set-up says why; killed: by a signal


class Faulty(Echo):
    """Echo on a cluster with a broken node and a service that comes and goes."""

    Config: ClassVar[type] = FaultyConfig

    def __init__(self, config: FaultyConfig) -> None:
        super().__init__(config)
        self.faulty = config

    def setup(self, device: str) -> None:
        if self.faulty.model == "bad":
            raise ValueError(f"/models/{os.getpid()}: a checkpoint of model type 'clip' writes no text")
        if self.faulty.model == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        super().setup(device)

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        if self.faulty.bad_host and os.environ.get("SLURMD_NODENAME") == self.faulty.bad_host:
            raise ShardError("input: this node's mount is gone", shard.uri)
        yield from super().read(shard)

    def _one(self, item: Item) -> Row:
        row = super()._one(item)
        if item.payload == "service" and not Path(self.faulty.service).exists():
            return Row(item.shard, item.index, item.key, FAILED, "service: away", transient=True)
        return row


class Workbench:
    """A folder with an input, a config, and the commands on it."""

    def __init__(self, folder: Path, texts: dict[str, list[str]], **keys: Any) -> None:
        self.folder, self.inputs = folder, folder / "inputs"
        self.inputs.mkdir()
        for name, lines in texts.items():
            (self.inputs / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        tree = {
            "operator": "tests.map.test_breakers.Faulty",
            "name": "run",
            "runs": str(folder / "runs"),
            "inputs": str(self.inputs),
            "cluster": {"kind": "local"},
            "map": {"lease_s": 2.0, "segment": 8, "idle_exit_s": 2.0, **keys.pop("map", {})},
            **keys,
        }
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        self.run = Run(folder / "runs" / "run")

    def command(self, *words: str, host: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        if host:
            environment["SLURMD_NODENAME"] = host
        command = [sys.executable, "-m", *words]
        return subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    def record(self, *overrides: str) -> Submission:
        """What a launch writes, without starting anything."""
        return map_launch.record(map_launch.prepare(configs.load(self.config, list(overrides))))

    def worker(self, slot: int) -> tuple[str, ...]:
        return ("hpc.worker", str(self.run.path), "--slot", str(slot))

    def launch(self, *overrides: str) -> int:
        return self.command("hpc.launch", str(self.config), *overrides).returncode

    def status(self) -> dict[str, Any]:
        return json.loads(self.command("hpc.status", str(self.run.path), "--json").stdout)

    def ends(self) -> Counter[str]:
        """How epochs ended, over all shards."""
        latest = self.run.latest()
        ledger = self.run.ledger(latest.identity)
        found = [json.loads(p.read_bytes())["how"] for p in ledger.root.glob("*/*.end")]
        return Counter(found)


def lines(count: int) -> list[str]:
    return [f"line {i}" for i in range(count)]


@pytest.mark.slow
def test_a_wrong_run_pauses_itself(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {f"s{i:02d}": ["unreadable"] for i in range(12)}, map={"breaker": 4})
    assert bench.launch() == Exit.INCOMPLETE
    status = bench.status()
    assert "first 4 shards of a slot failed alike: input: unreadable" in status["paused"]
    assert status["shards"]["failed"] <= 4 and status["shards"]["open"] >= 8
    for shard in bench.inputs.iterdir():
        shard.write_text("a\nb\n")
    mended = bench.command("hpc.launch", str(bench.config), "--supersede", "map.breaker=0")
    assert mended.returncode in (Exit.COMPLETE, Exit.SOME_FAILED), mended.stderr
    assert bench.status()["paused"] is None and bench.status()["shards"]["done"] >= 8


@pytest.mark.slow
def test_a_model_that_cannot_load_pauses_the_run(tmp_path: Path) -> None:
    """Three deaths, not nine: status and logs have the words; a launch with the right model goes on."""
    bench = Workbench(tmp_path, {"a": lines(3)}, model="bad")
    assert bench.launch() == Exit.INCOMPLETE
    words = "a checkpoint of model type 'clip' writes no text"
    paused = bench.status()["paused"]
    assert paused.startswith("3 engines died alike in set-up: setup: /models/") and paused.endswith(words)
    said = bench.command("hpc.logs", str(bench.run.path), "--failed").stdout
    assert said.count(words) == 4 and "paused: 3 engines died alike" in said and "logs/" in said
    assert bench.launch("model=good") == Exit.COMPLETE
    assert bench.status()["paused"] is None


@pytest.mark.slow
def test_deaths_in_set_up_by_a_signal_do_not_pause_the_run(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": lines(3)}, model="killed")
    bench.record()
    done = bench.command(*bench.worker(0))
    assert done.returncode == Exit.REQUEUE and done.stderr.count("setup: killed by SIGKILL") >= 3
    assert bench.run.control_text("pause") is None


@pytest.mark.slow
def test_a_broken_node_is_excluded_while_others_do_well(tmp_path: Path) -> None:
    """The good node's last shard waits for `go`, so that there is work left however slow the bad node's lives are."""
    texts = {f"s{i:02d}": lines(20) for i in range(15)} | {"z": ["wait"]}
    bench = Workbench(tmp_path, texts, bad_host="bad", delay_s=0.01, map={"breaker": 3, "attempts": 9})
    bench.record()
    good = subprocess.Popen(
        [sys.executable, "-m", *bench.worker(0)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLURMD_NODENAME": "good"},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not any(f.get("rows") for f in read_all(bench.run.slots)):
            assert good.poll() is None, "the good node ended before it did anything"
        bad = bench.command(*bench.worker(1), host="bad")
        assert bad.returncode == Exit.REQUEUE, bad.stderr
        assert "input: this node's mount is gone" in breaker.excluded(bench.run)["bad"]
        again = bench.command(*bench.worker(1), host="bad")
        assert again.returncode == Exit.REQUEUE and "is excluded" in again.stderr
        (bench.inputs / "go").touch()
        assert good.wait(60) == Exit.COMPLETE
    finally:
        good.kill()
    assert not Published(bench.run.path).missing()
    assert list(bench.status()["excluded"]) == ["bad"]


@pytest.mark.slow
def test_an_unfit_node_is_refused_in_words(tmp_path: Path) -> None:
    """Five lives, none with progress: the slot stops and says why."""
    bench = Workbench(tmp_path, {"a": lines(4)})
    assert bench.launch("map.min_free_gb=1e9") == Exit.INCOMPLETE
    lives = sorted(read_all(bench.run.slots), key=lambda f: f["life"])
    assert len(lives) == 6 and all("GB free on" in f["why"] for f in lives)
    assert lives[-1]["why"].startswith("gave up: 5 lives without progress, the last: preflight: disk:")
    assert not bench.ends()


@pytest.mark.slow
def test_only_bad_samples_are_done_again(tmp_path: Path) -> None:
    text = [*lines(10), "service", *lines(10), "service", "exit", *lines(5)]
    service, applied = tmp_path / "service", tmp_path / "applied"
    bench = Workbench(
        tmp_path, {"a": text, "b": lines(9)}, service=str(service), applied=str(applied), batch=4, map={"attempts": 2}
    )
    assert bench.launch() == Exit.SOME_FAILED
    failures = bench.status()["failures"]
    assert {reason: (f["count"], f["example"]) for reason, f in failures.items()} == {
        "samples: service: away": (1, "a")
    }
    service.touch()
    applied.unlink()
    rerun = bench.command("hpc.rerun", str(bench.run.path), "--samples")
    assert rerun.returncode == Exit.COMPLETE, rerun.stdout + rerun.stderr
    again = {line.split(maxsplit=1)[1] for line in applied.read_text().splitlines()}
    assert again == {"a 10", "a 21", "a 22"}, "only what failed or killed was applied again"
    rows = Published(bench.run.path)
    (a, _) = list(rows)
    assert a.marker["counts"] == {"ok": len(text) - 1, "quarantined": 1} and a.marker["generation"] == 1
    assert a.table()["text"].to_pylist()[:22] == text[:22]
    assert bench.command("hpc.verify", str(bench.run.path), "--full").returncode == Exit.COMPLETE


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_full_disk_is_not_the_shards_fault(tmp_path: Path, fault: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True)
    try:
        texts = {f"s{i}": lines(600) for i in range(6)}
        bench = Workbench(tmp_path, texts, runs=str(small), delay_s=0.001, map={"min_free_gb": 0.0})
        bench.run = Run(small / "run")
        bench.record()
        if fault == "full":
            free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
            (small / "filler").write_bytes(b"\0" * (free - 100_000))
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        broken = bench.command(*bench.worker(9))
        assert broken.returncode not in (Exit.COMPLETE, Exit.SOME_FAILED)
        assert "No space left on device" in broken.stderr or "Read-only file system" in broken.stderr
        subprocess.run(["mount", "-o", "remount,rw,size=64m", str(small)], check=True)
        assert bench.ends()["failed"] == 0, "no shard was charged"
        assert bench.launch() == Exit.COMPLETE
        assert bench.status()["samples"]["ok"] == 6 * 600
        assert bench.command("hpc.verify", str(bench.run.path), "--full").returncode == Exit.COMPLETE
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


@pytest.mark.slow
def test_output_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("results")
    try:
        texts = {f"s{i}": lines(20 + i) for i in range(3)}
        bench = Workbench(tmp_path, texts, output="s3://results/captions")
        assert bench.launch() == Exit.COMPLETE
        found = {s.shard.id: s for s in Published(bench.run.path)}
        assert {i: s.table()["text"].to_pylist() for i, s in found.items()} == texts
        assert all(s.location.startswith("s3://results/captions/run/columns/echo/") for s in found.values())
        assert not list(bench.run.path.glob("columns/**/*.parquet"))
        assert bench.command("hpc.verify", str(bench.run.path), "--full").returncode == Exit.COMPLETE
        system.pipe_file(found["s1"].location, b"tampered")
        verified = bench.command("hpc.verify", str(bench.run.path), "--full")
        assert verified.returncode == Exit.INCOMPLETE and "s1" in verified.stdout
        secret = [p for p in bench.run.path.rglob("*") if p.is_file() and b"very-secret" in p.read_bytes()]
        assert not secret, "no secret lands in the run directory"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def test_every_execution_key_is_marked() -> None:
    """A key that leaves the output as it is must not change its identity."""
    marked = {f.name for f in dataclasses.fields(FaultyConfig) if f.metadata.get("execution")}
    assert {"bad_host", "service", "inputs"} <= marked


def test_a_cancelled_or_paused_run_is_not_brought_back_by_its_gate(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": lines(4)})
    bench.record()
    for name in ("cancelled", "pause"):
        (bench.run.control / name).write_text("by hand")
        gate = bench.command("hpc.gate", str(bench.run.path))
        assert gate.returncode == Exit.INCOMPLETE and f"{name}: by hand" in gate.stderr, gate.stderr
        (bench.run.control / name).unlink()
    assert len(bench.run.submissions()) == 1


@pytest.mark.slow(ci=True)
def test_samples_of_a_changed_input_are_not_kept(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": [*lines(4), "bad"]}, map={"max_failed": 0.5})
    assert bench.launch() == Exit.COMPLETE
    (bench.inputs / "a.txt").write_text("another first line\n")
    refused = bench.command("hpc.rerun", str(bench.run.path), "--samples")
    assert refused.returncode == Exit.USAGE and "changed" in refused.stderr


@pytest.mark.slow
def test_a_file_that_is_gone_costs_a_rerun_no_engine(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": [*lines(4), "bad"]}, map={"max_failed": 0.5})
    assert bench.launch() == Exit.COMPLETE
    (shard,) = Published(bench.run.path)
    shard.file.unlink()
    assert bench.command("hpc.rerun", str(bench.run.path), "--samples").returncode == Exit.COMPLETE
    assert bench.ends()["died"] == 0 and bench.status()["samples"] == {
        "ok": 4, "skipped": 0, "failed": 1, "quarantined": 0, "left": 0
    }  # fmt: skip


@pytest.mark.slow(ci=True)
def test_an_exclusion_by_hand_is_read(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": lines(2)})
    bench.record()
    (bench.run.control / "excluded").mkdir()
    (bench.run.control / "excluded" / "bad").touch()
    assert breaker.excluded(bench.run) == {"bad": "by hand"}
    assert bench.command(*bench.worker(0), host="bad").returncode == Exit.REQUEUE
    assert bench.command(*bench.worker(0), host="good").returncode == Exit.COMPLETE
