"""What a run on Slurm survives, on a real Slurm. The work is done by the torch-free operator of tests/support/echo.py.

Each test asserts that its fault hit, and by `check` that each sample is in the output exactly once, in whole files.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc.base import bootstrap
from hpc.config import ClusterConfig
from hpc.map.in_flight import InFlight
from hpc.run.directory import Run, Submission
from hpc.run.ledger import FAILED
from hpc.slurm.queue import find_job
from hpc.slurm.submission import Launcher
from tests.support.slurm_cluster import GPUS, NODES, ROOT, Cluster, alive, wait
from tests.support.slurm_job import EchoJob, Job

GOLDEN = Path(__file__).parent / "golden" / "batch_script.sh"


@pytest.fixture
def make(slurm: Cluster, tmp_path: Path) -> Iterator[Callable[..., EchoJob]]:
    """Makes a job; what still runs of it at the end is cancelled, so that the next test finds free nodes."""
    made: list[EchoJob] = []

    def new(**arguments: Any) -> EchoJob:
        made.append(EchoJob(slurm, tmp_path, **arguments))
        return made[-1]

    yield new
    for job in made:
        job.cancel()
        job.wait_over()


# --- the batch script -------------------------------------------------------------------------


def test_batch_script() -> None:
    """The whole text, so that no change of it goes unseen."""
    cluster = ClusterConfig(
        kind="slurm", slots=64, parallel=32, gpus_per_node=8, cpus_per_node=64, mem_gb=900, time="24:00:00",
        partition="gpu", account="vision", exclude="node[13,27]", prelude=["module load cuda"], python="python3",
        srun_args=["--cpu-bind=none"], sbatch={"reservation": "weekly"},
    )  # fmt: skip
    submission = Submission(
        "5b1e7a90c3d2", 0.0, plan="", identity="", column="recap", code="c0ffee123456", slots=64, config={}, source=""
    )
    assert without_bootstrap(Launcher(Run("/shared/runs/first"), submission, cluster).script()) == GOLDEN.read_text()


def without_bootstrap(script: str) -> str:
    """A batch script with a word in place of the program that it carries along."""
    return script.replace(shlex.quote(Path(bootstrap.__file__).read_text()), "BOOTSTRAP") + "\n"


@pytest.mark.slurm
def test_dry_run_prints_what_is_submitted(make: Callable[..., EchoJob], monkeypatch: pytest.MonkeyPatch) -> None:
    """Submitted from inside another job, as login shells often are: its memory and GPUs must stay its own."""
    job = make(shards=3, lines=1)
    before = sorted(job.config.parent.rglob("*"))
    said = job.slurm.run(*job.command("cluster.slots=2", "--dry-run"))
    assert sorted(job.config.parent.rglob("*")) == before
    job.launch("slots=2", inside=("salloc", "--quiet", "--nodes=1", "--gpus=1", "--mem=500"))
    submitted = (job.run.logs / f"{job.id}_submission.sh").read_text()
    assert submitted.replace(job.run.latest().uuid, "0" * 12) in said
    monkeypatch.setenv("SLURM_CONF", job.slurm.env["SLURM_CONF"])
    assert find_job(job.run.latest().uuid) == job.id
    job.wait_over()
    job.check()


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
def test_check_is_a_job_of_its_own(slurm: Cluster, tmp_path: Path) -> None:
    """It has a slot's resources, is waited for, and begins nothing of the run; where it dies, its log says why."""
    job = EchoJob(slurm, tmp_path, shards=6, lines=3)
    said = slurm.run(*job.command("cluster.slots=3", "cluster.gpus_per_node=1", "cluster.device=cpu", "--check"))
    assert "4 of 4 samples ok on n" in said and "text: line 0 of shard 3" in said, said
    assert "nothing was submitted (--check)" in said and job.run.submissions() == []
    said = slurm.run(*job.command("setup_fault=exit", "--check"), code=1)
    number = said.partition("the check is job ")[2].split()[0]
    assert job.run.logs / f"check-{number}.log" in job.run.logs.iterdir()


# --- the work ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.slurm
def test_three_nodes_with_two_gpus_each(make: Callable[..., EchoJob]) -> None:
    job = make(shards=24, lines=12, delay_s=0.05)
    job.launch(f"slots={NODES}", f"gpus_per_node={GPUS}", "device=cpu")
    each = {(f"n{node}", str(gpu)) for node in range(1, NODES + 1) for gpu in range(GPUS)}
    seen: set[tuple[str, str]] = set()
    wait(lambda: seen.update(devices(job.processes("hpc.map.engine"))) or seen >= each, "every GPU has had its engine")
    assert seen == each, "an engine sees one GPU"
    job.wait_over()
    job.check()
    lives = [facts for slot in range(NODES) for facts in job.lives(slot)]
    assert {(f["host"], engine["device"]) for f in lives for engine in f["engines"] if engine["done"]} == each
    assert {marker["by"]["host"] for marker in job.markers().values()} == {host for host, _ in each}
    assert {e.state for e in job.slurm.elements(job.id).values()} == {"COMPLETED"}


@pytest.mark.slow
@pytest.mark.slurm
def test_engines_of_two_gpus(make: Callable[..., EchoJob]) -> None:
    """cluster.gpus_per_engine: a node has one engine for its two GPUs, which sees both as Slurm names them."""
    job = make(shards=12, lines=12, delay_s=0.05)
    job.launch(f"slots={NODES}", f"gpus_per_node={GPUS}", f"gpus_per_engine={GPUS}", "device=cpu")
    each = {(f"n{node}", ",".join(map(str, range(GPUS)))) for node in range(1, NODES + 1)}
    seen: set[tuple[str, str]] = set()
    wait(lambda: seen.update(devices(job.processes("hpc.map.engine"))) or seen >= each, "every node has had its engine")
    assert seen == each, "an engine sees both GPUs"
    job.wait_over()
    job.check()
    assert {event["engines"] for event in job.events("start")} == {GPUS}  # whose hours are counted


def devices(engines: list[psutil.Process]) -> set[tuple[str, str]]:
    """(node, CUDA_VISIBLE_DEVICES) of engine processes."""
    found = set()
    for engine in engines:
        with contextlib.suppress(psutil.NoSuchProcess):
            environment = engine.environ()
            found.add((environment["SLURMD_NODENAME"], environment["CUDA_VISIBLE_DEVICES"]))
    return found


@pytest.mark.slow
@pytest.mark.slurm
def test_engine_killed(make: Callable[..., EchoJob]) -> None:
    job = make(shards=8, lines=12, delay_s=0.05)
    job.launch("engines_per_node=2")
    job.wait_working()
    victim = job.processes("hpc.map.engine")[0]
    while not (held := suspended_with(victim)):
        victim.resume()
    victim.kill()
    job.wait_over()
    job.check()
    assert [e["died"] for e in job.events("engine")] == ["killed by SIGKILL"]
    (end,) = [e for e in job.events("ended") if e["how"] == "died"]
    assert (end["shard"], end["in_flight"]) == (held[0][0], [index for _, _, index in held])
    assert len(job.lives()) == 1, "the agent went on and started another engine"


def suspended_with(engine: psutil.Process) -> list[tuple[str, int, int]]:
    """Suspend an engine; (shard, generation, sample) that it has in flight at that moment."""
    engine.suspend()
    wait(lambda: engine.status() == psutil.STATUS_STOPPED, "the engine is suspended")
    return InFlight.read(Path(engine.cmdline()[-1])).samples


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
def test_agent_killed(make: Callable[..., EchoJob]) -> None:
    job = make(shards=8, lines=12, delay_s=0.05)
    job.launch("engines_per_node=2")
    job.wait_working()
    engines, agent = job.processes("hpc.map.engine"), job.agent()
    assert len(engines) == 2
    agent.kill()
    wait(lambda: not any(map(alive, [agent, *engines])), "no orphan is left", timeout=5)
    wait(lambda: len(job.lives()) == 2, "the slot has a second life")
    job.wait_over()
    job.check()
    log = job.log()
    assert "life 0" in log and "slot 0: exit code 137: requeue" in log and "life 1" in log
    assert [(e.state, e.restarts) for e in job.slurm.elements(job.id).values()] == [("COMPLETED", 1)]


@pytest.mark.slow
@pytest.mark.slurm
def test_cancelled_by_scancel_then_launched_again(make: Callable[..., EchoJob]) -> None:
    job = make(shards=24, lines=12, delay_s=0.05)
    first = job.launch("slots=2")
    job.wait_working(shards=2, slots=2)
    job.cancel()
    job.wait_over()
    cancelled = job.slurm.elements(first)
    assert {i: (e.state, e.restarts) for i, e in cancelled.items()} == {i: ("CANCELLED", 0) for i in (0, 1)}
    for slot in (0, 1):
        assert job.lives(slot)[0]["code"] == 143 and "draining: SIGTERM" in job.log(slot)
        assert "requeue" not in job.log(slot)
    before = job.markers()
    assert 2 <= len(before) < 24
    job.launch("slots=2")
    job.wait_over()
    job.check()
    assert {shard: job.marker(shard) for shard in before} == before, "what was done was not done again"
    assert job.slurm.elements(first) == cancelled


@pytest.mark.slow
@pytest.mark.slurm
def test_cancelled_by_control_file(make: Callable[..., EchoJob]) -> None:
    """Both ways out: an agent that sees the file leaves by itself, and one that dies is not requeued."""
    job = make(shards=24, lines=12, delay_s=0.05)
    job.launch("slots=2")
    job.wait_working(slots=2)
    job.agent(1).suspend()
    (job.run.control / "cancelled").write_text("by the test")
    job.agent(1).kill()
    job.wait_over()
    assert {i: (e.code, e.restarts) for i, e in job.slurm.elements(job.id).items()} == {0: ("1:0", 0), 1: ("137:0", 0)}
    assert job.lives(0)[0]["why"] == "cancelled by the test"
    assert "requeue" not in job.log(0) + job.log(1)
    job.launch("slots=2")
    job.wait_over()
    job.check()


@pytest.mark.slow
@pytest.mark.slurm
def test_failed_shard_rerun_alone(make: Callable[..., EchoJob]) -> None:
    job = make(shards=4, lines=6)
    bad = job.inputs / "shard-02.txt"
    good = bad.read_text()
    bad.write_text("unreadable\n")
    job.launch()
    job.wait_over()
    assert {s for s, state in job.states().items() if state.status == FAILED} == {"shard-02"}
    assert [(e.code, e.restarts) for e in job.slurm.elements(job.id).values()] == [("2:0", 0)]
    before = job.markers()
    bad.write_text(good)
    job.slurm.run(sys.executable, "-m", "hpc.rerun", str(job.run.path))
    job.wait_over()
    job.check()
    assert job.done() == {"shard-00": 0, "shard-01": 0, "shard-02": 1, "shard-03": 0}
    assert {shard: job.marker(shard) for shard in before} == before, "only the failed shard was done again"


@pytest.mark.slurm
def test_node_dies(make: Callable[..., EchoJob]) -> None:
    """Its slot's shards are taken over when its heartbeat stops; Slurm notices much later."""
    job = make(shards=18, lines=12, delay_s=0.05)
    job.launch("slots=3", "gpus_per_node=2", "device=cpu")
    job.wait_working(shards=3, slots=3)
    (lost,) = [slot for slot in range(3) if job.lives(slot)[0]["host"] == "n2"]
    instance = job.lives(lost)[0]["instance"]
    job.slurm.kill_node("n2")
    try:
        held = job.claims(instance)
        assert held, "it died with work in its hands"
        job.wait_shards(18)
        job.check()
    finally:
        job.cancel()
        job.slurm.start_node("n2")
    assert len(job.lives(lost)) == 1
    for marker in map(job.marker, held):
        assert marker["epoch"] > 0 and marker["by"]["host"] != "n2"


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
def test_captioner(slurm: Cluster, tmp_path: Path) -> None:
    """The demo's model and pictures, on two nodes."""
    tars = [ROOT / f"recap/demo/flags/0000{number}.tar" for number in range(2)]
    shards = "data.shards=[" + ",".join(map(str, tars)) + "]"
    job = Job(slurm, ROOT / "configs/caption/demo.yaml", tmp_path / "runs/demo", shards, "cluster=slurm")
    few = ("slots=2", "gpus_per_node=1", "cpus_per_node=1", "mem_gb=6", "time='10'")
    job.launch("device=cpu", "sbatch.exclusive=true", *few)
    job.wait_over(timeout=240)
    assert job.lives(0)[0]["host"] != job.lives(1)[0]["host"]
    for tar in tars:
        with tarfile.open(tar) as file:
            keys = list(dict.fromkeys(name.split(".")[0] for name in file.getnames()))
        rows = job.table(tar.stem).to_pylist()
        assert [r["key"] for r in rows] == keys
        assert all(r["status"] == "ok" and r["caption"] and r["text"] for r in rows)
    job.verify(shards=2)


@pytest.mark.slurm
@pytest.mark.slow
def test_node_dies_and_slurm_notices(make: Callable[..., EchoJob]) -> None:
    """The only slot is lost with its node; Slurm requeues it on another one when the node's silence is long enough."""
    job = make(shards=8, lines=12, delay_s=0.05)
    job.launch()
    job.wait_working()
    (first,) = job.lives()
    job.slurm.kill_node(first["host"])
    try:
        wait(lambda: len(job.lives()) == 2, "the slot has a second life")
        job.wait_over()
    finally:
        job.slurm.start_node(first["host"])
    job.check()
    assert job.lives()[1]["host"] != first["host"]
    assert [(e.state, e.restarts) for e in job.slurm.elements(job.id).values()] == [("COMPLETED", 1)]


@pytest.mark.slurm
@pytest.mark.slow
def test_preempted(make: Callable[..., EchoJob]) -> None:
    job = make(shards=8, lines=12, delay_s=0.1)
    job.launch("gpus_per_node=2", "device=cpu", "nodelist=n1")
    job.wait_working()
    job.slurm.run("srun", "--partition=high", "--nodelist=n1", "--gpus=2", "true")
    assert len(job.done()) < 8
    job.wait_over()
    job.check()
    assert "draining: SIGUSR2" in job.log() and "life 1" in job.log()
    assert [(e.state, e.restarts) for e in job.slurm.elements(job.id).values()] == [("COMPLETED", 1)]


@pytest.mark.slow
@pytest.mark.slurm
def test_time_limit(make: Callable[..., EchoJob]) -> None:
    """Slurm warns with USR2, the agent drains and exits with 75, the batch script requeues it, the work goes on.

    Slurm looks at time limits every 30 s: one sample waits until the second life of the slot is there.
    """
    job = make(shards=4, lines=4)
    (job.inputs / "shard-99.txt").write_text("wait\n")
    job.launch("time='1'", "signal_delay_s=50", "nodelist=n3")
    wait(lambda: len(job.lives()) > 1, "the slot has a second life")
    (job.inputs / "go").touch()
    job.wait_over()
    job.check()
    log = job.log()
    assert "draining: SIGUSR2" in log and "slot 0: exit code 75: requeue" in log and "life 1" in log
    first, *others = job.lives()
    assert first["code"] == 75 and first["rows"] > 0 and others
    (element,) = job.slurm.elements(job.id).values()
    assert (element.state, element.restarts) == ("COMPLETED", len(others))
    assert len({marker["by"]["instance"] for marker in job.markers().values()}) > 1, "the second life went on"


@pytest.mark.slurm
def test_ctrl_c_of_a_check_cancels_its_job(slurm: Cluster, tmp_path: Path) -> None:
    job = EchoJob(slurm, tmp_path, shards=1, lines=1)
    (job.inputs / "shard-00.txt").write_text("wait\n")  # for a file that never comes
    command = job.command("--check")
    check = subprocess.Popen(
        command, env=job.slurm.env, cwd=ROOT, text=True, stdout=-1, stderr=-1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs behind
    )  # fmt: skip
    try:
        wait(lambda: job.slurm.run("squeue", "-h", "-o", "%j %T") == "echo-check RUNNING\n", "the check runs")
        check.send_signal(signal.SIGINT)
        out, err = check.communicate(timeout=240)
    finally:
        check.kill()
    assert check.returncode == 1 and "the check was stopped" in err and "nothing was submitted (--check)" in out
    (number,) = re.findall(r"the check is job (\d+)", out)
    wait(lambda: "JobState=CANCELLED" in job.slurm.run("scontrol", "show", "job", number), "its job is cancelled")
    assert not job.run.submissions()
