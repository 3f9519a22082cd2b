"""What a site asks of submissions: containers, preludes, limits, jobs submitted by hand; on a real Slurm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc import config as configs
from hpc.base import heartbeat
from hpc.base.errors import Exit, UserError
from hpc.config import ClusterConfig, ContainerConfig, GangConfig
from hpc.map import launch as map_launch
from hpc.run.directory import Run, Submission
from hpc.slurm import queue
from hpc.slurm.jobs import GangLauncher
from hpc.slurm.submission import Launcher
from tests.support.slurm_cluster import ROOT, Cluster, wait
from tests.support.slurm_job import EchoJob

SUBMISSION = Submission("5b1e", 0.0, plan="", identity="", column="", code="c0de", slots=4, config={}, source="")


def command(**cluster: Any) -> str:
    return Launcher(Run("/runs/r"), SUBMISSION, ClusterConfig(kind="slurm", **cluster)).worker_command()


def test_apptainer() -> None:
    container = ContainerConfig("apptainer", "/images/re cap.sif", ["/data", "/scratch:/tmp:rw"], ["--writable-tmpfs"])
    assert command(container=container, gpus_per_node=8, srun_args=["--cpu-bind=none"]) == (
        "srun --unbuffered --kill-on-bad-exit=1 --cpu-bind=none "
        "apptainer exec --nv --bind /runs/r:/runs/r --bind /data:/data --bind /scratch:/tmp:rw --writable-tmpfs "
        "'/images/re cap.sif' python3 -I -c \"$boot\" /runs/r/code/c0de "
        'hpc.worker /runs/r --submission 5b1e --slot "$SLURM_ARRAY_TASK_ID"'
    )


def test_pyxis() -> None:
    container = ContainerConfig("pyxis", "nvcr.io#nvidia/pytorch:25.10-py3", ["/data"], ["--container-writable"])
    assert command(container=container, python="/opt/python", srun_args=["--mpi=none"]) == (
        "srun --unbuffered --kill-on-bad-exit=1 '--container-image=nvcr.io#nvidia/pytorch:25.10-py3' "
        "--container-mounts=/runs/r:/runs/r,/data:/data --container-writable --mpi=none "
        '/opt/python -I -c "$boot" /runs/r/code/c0de hpc.worker /runs/r --submission 5b1e --slot "$SLURM_ARRAY_TASK_ID"'
    )


def test_a_gang_begins_inside_the_container_too() -> None:
    cluster = ClusterConfig(kind="slurm", container=ContainerConfig("pyxis", "image"))
    said = GangLauncher(Run("/runs/r"), SUBMISSION, cluster, GangConfig(2)).worker_command()
    begin, _, ranks = said.partition(" && ")
    assert begin.startswith("srun --nodes=1 --ntasks=1 --container-image=image ")
    assert begin.endswith("--begin")
    assert "--container-image=image" in ranks


def write(folder: Path, **cluster: Any) -> Path:
    path = folder / "c.yaml"
    tree = {
        "name": "r",
        "operator": "tests.support.echo.Echo",
        "inputs": str(folder),
        "cluster": {"kind": "slurm", **cluster},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_prelude_may_be_a_file_and_its_lines_are_kept(tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text("# a comment\nmodule load cuda\n\nexport A='b c'\n")
    config = configs.load(write(tmp_path, prelude=[f"@{tmp_path}/site.sh", "ulimit -n 65536"]), [])
    assert config.run.cluster.prelude == ["module load cuda", "export A='b c'", "ulimit -n 65536"]
    assert config.resolved["cluster"]["prelude"] == config.run.cluster.prelude
    assert configs.load(ROOT / "configs/caption/demo.yaml", [f"cluster.prelude=[@{ROOT}/sbatch/prelude.sh]"])


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ({"prelude": ["trap 'cleanup' TERM"]}, "traps a signal"),
        ({"prelude": ["set -e; trap cleanup EXIT"]}, "traps a signal"),
        ({"prelude": ["@/nowhere/site.sh"]}, "cannot be read"),
        ({"container": {"runtime": "docker", "image": "x"}}, "Write apptainer or pyxis"),
        ({"container": {"runtime": "pyxis"}}, "Name the image"),
        ({"container": {"imgae": "x"}}, "Did you mean `cluster.container.image`"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, cluster: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        configs.load(write(tmp_path, **cluster), [])
    assert says in str(error.value)


def test_the_paper_s_run(tmp_path: Path) -> None:
    config = configs.load(ROOT / "configs/caption/recap_datacomp1b.yaml", ["cluster.partition=gpu"])
    captioner = config.work.captioner
    assert captioner.prompt == (
        "Please generate a detailed caption of this image. Please be as descriptive as possible."
    )
    assert (captioner.decoding, captioner.max_tokens, captioner.geometry) == ("greedy", 128, "pad")
    assert (config.run.cluster.kind, config.run.cluster.partition) == ("slurm", "gpu")


# --- on Slurm ---------------------------------------------------------------------------------


@pytest.fixture
def job(slurm: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EchoJob]:
    made = EchoJob(slurm, tmp_path, **request.param)
    yield made
    if made.run.submissions():
        made.cancel()


@pytest.mark.slurm
@pytest.mark.parametrize("job", [{"shards": 6, "lines": 5}], indirect=True)
def test_a_container_s_command_line_reaches_the_node(job: EchoJob, tmp_path: Path) -> None:
    """Apptainer cannot be had here: a stand-in takes its arguments, writes them down and runs what it is given."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stand_in = tools / "apptainer"
    stand_in.write_text(
        '#!/bin/bash\necho "$@" >> "$SAID"\nshift; while [[ $1 == --* ]]; do [[ $1 == --bind ]] && shift; shift; done\n'
        'shift; exec "$@"\n'
    )
    stand_in.chmod(0o755)
    site = tmp_path / "site.sh"
    site.write_text(f"export PATH={tools}:$PATH SAID={tmp_path}/said\n")
    job.launch(f"prelude=[@{site}]", "container.image=/images/recap.sif", "container.mounts=[/data]")
    job.wait_over()
    job.check()
    said = (tmp_path / "said").read_text()
    assert f"exec --bind {job.run.path}:{job.run.path} --bind /data:/data /images/recap.sif {sys.executable}" in said


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
@pytest.mark.parametrize("job", [{"shards": 1100, "lines": 1, "delay_s": 0.5}], indirect=True)
def test_more_slots_than_an_array_may_have(job: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", job.slurm.env["SLURM_CONF"])
    most = queue.max_array_size()
    assert most == 1001
    job.launch("slots=1100")
    assert job.run.latest().slots == most
    assert f"#SBATCH --array=0-{most - 1}%{most}" in (job.run.logs / f"{job.id}_submission.sh").read_text()


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("job", [{"shards": 16, "lines": 10, "delay_s": 0.05}], indirect=True)
def test_a_run_that_is_submitted_by_hand(job: EchoJob, tmp_path: Path) -> None:
    """Recorded only, then two arrays of the batch script that ships, which share the work."""
    said = job.slurm.run(*job.command("--no-submit"))
    assert "sbatch/caption.sbatch" in said
    assert job.run.latest().state == "by hand"
    assert job.run.latest().job_ids == []
    options = ["--time=10", "--mem=500", f"--export=ALL,PYTHON={sys.executable}", f"--output={tmp_path}/%A_%a.log"]
    script = ["sbatch/caption.sbatch", str(job.run.path)]
    arrays = [job.slurm.run("sbatch", "--parsable", "--array=0-1", *options, *script).strip() for _ in range(2)]
    wait(lambda: len(job.done()) == 16, "all is done")
    job.check()
    elements = [(int(array), element) for array in arrays for element in (0, 1)]
    slots = {marker["by"]["instance"].split("-")[1] for marker in job.markers().values()}
    assert len(slots) > 1
    assert slots <= {str(array * 10000 + element) for array, element in elements}
    said_logs = {Path(facts["log"]) for facts in heartbeat.read_all(job.run.slots)}
    assert said_logs <= {tmp_path / f"{array}_{element}.log" for array, element in elements}


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.parametrize("job", [{"shards": 32, "lines": 12, "delay_s": 0.05}], indirect=True)
def test_cancel_drains_and_no_requeue_undoes_it(job: EchoJob) -> None:
    first = job.launch("slots=5", "parallel=2")
    job.wait_working(shards=2, slots=2)
    said = job.slurm.run(sys.executable, "-m", "hpc.cancel", str(job.run.path))
    assert "stopped. To go on" in said
    elements = job.slurm.elements(first)
    assert {elements[i].state for i in (0, 1)} == {"FAILED"}, "they drained and left with 1, before any scancel"
    assert {life["code"] for slot in (0, 1) for life in job.lives(slot)} == {Exit.INCOMPLETE}
    before = job.done()
    assert 2 <= len(before) < 32
    job.slurm.run("scontrol", "requeue", f"{first}_0")
    wait(lambda: len(job.lives(0)) == 2 and job.lives(0)[1].get("state") == "exited", "the requeued life has ended")
    assert job.done() == before
    assert "cancelled by" in job.slurm.run(sys.executable, "-m", "hpc.logs", str(job.run.path))
    job.launch("slots=2")
    job.wait_over()
    job.check()


@pytest.mark.slurm
@pytest.mark.parametrize("job", [{"shards": 8, "lines": 2}], indirect=True)
def test_an_array_that_slurm_refuses_is_halved(job: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at a site's limit on submitted jobs (root, who runs tests, has none: an array that is too large stands in)."""
    for name, value in job.slurm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(ROOT))
    made = map_launch.prepare(configs.load(job.config, [f"runs={job.run.path.parent}", f"name={job.run.name}"]))
    submission = map_launch.record(made)
    submission.slots = 3000
    submission.job_ids = [Launcher(job.run, submission, made.config.run.cluster).submit_script()]
    job.run.save(submission)
    assert job.run.latest().slots == 750
    assert "#SBATCH --array=0-749" in (job.run.logs / f"{job.id}_submission.sh").read_text()
