"""Launch, status, rerun and verify as their users meet them; and which part of the toolkit may know of which."""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from hpc.run.directory import Run
from hpc.run.ledger import DONE, Claim
from hpc.run.plan import Plan
from tests.support.jobs import ENVIRONMENT, ROOT, EchoJob, command, inline, texts


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> EchoJob:
    """A run that a launch has brought to its end: two shards done, one failed. Not to be changed."""
    lines = {"a": texts(5), "b": [*texts(39), "bad"], "broken": ["unreadable"]}
    job = EchoJob(tmp_path_factory.mktemp("finished"), lines)
    done = job.launch()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "python -m hpc.rerun" in done.stdout
    return job


def copy(job: EchoJob, folder: Path) -> EchoJob:
    """The same run in another place."""
    shutil.copytree(job.folder, folder, dirs_exist_ok=True)
    made = EchoJob(folder, job.lines)
    assert made.run.path.exists()
    return made


def refused(job: EchoJob, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A launch that starts nothing, and so needs no process of its own."""
    done = inline("hpc.launch", str(job.config_file), *arguments)
    assert done.returncode == 64, done.stdout + done.stderr
    return done


def everything(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): p.lstat().st_mtime for p in folder.rglob("*")}


# --- what a launch refuses --------------------------------------------------------------------


def test_another_run_s_directory(finished: EchoJob, tmp_path: Path) -> None:
    other = EchoJob(tmp_path, {"x": texts(2)}, runs=str(finished.run.path.parent))
    done = refused(other)
    assert "belongs to another plan" in done.stderr and "name=" in done.stderr


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": texts(2)})
    job.run.path.mkdir(parents=True)
    (job.run.path / "thesis.tex").touch()
    done = refused(job)
    assert "not a run directory" in done.stderr
    assert os.listdir(job.run.path) == ["thesis.tex"]


def test_changed_identity(finished: EchoJob, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    before = everything(job.run.path)
    done = refused(job, "prefix=x")
    assert everything(job.run.path) == before
    for part in ("prefix", "--supersede", "name=", "2 finished shards"):
        assert part in " ".join(done.stderr.split()), done.stderr
    old = job.run.latest().identity
    assert job.launch("prefix=x", "--supersede").returncode == 2
    assert job.run.latest().identity != old and job.rows("a")[0]["text"] == "xline 0"
    assert (job.run.path / f"config.{old}.yaml").exists()  # what made the earlier output stays known
    assert len(list(job.run.path.glob(f"columns/echo/{old}/*/*.parquet"))) == 2  # and so does the output


def test_object_store_as_run_directory(tmp_path: Path) -> None:
    done = refused(EchoJob(tmp_path, {"a": texts(2)}), "runs=s3://bucket/runs")
    assert "object store" in done.stderr and "POSIX" in done.stderr


def test_no_shards(tmp_path: Path) -> None:
    assert "no shards" in refused(EchoJob(tmp_path, {})).stderr


MINE = """
from tests.support.echo import Echo
from tests.train.plain import Plain
"""


def test_what_lies_only_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` finds it there, and no slot would: said at launch, for every kind of job, with what to do."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").write_text(MINE)  # a namespace package: no __init__.py
    made = {"runs": "runs", "cluster": "local"}
    stages = {"one": {"config": "map.yaml"}, "two": {"config": "gang.yaml", "needs": "one"}}
    for name, tree in {
        "map": {**made, "name": "map", "operator": "mine.work.Echo", "inputs": str(tmp_path)},
        "gang": {**made, "name": "gang", "trainer": "mine.work.Plain"},
        "pipeline": {**made, "name": "both", "stages": stages},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "a.txt").write_text("one line")

    def typed(path: str) -> subprocess.CompletedProcess[str]:
        command, env = [sys.executable, "-m", "hpc.launch", "map.yaml"], {**ENVIRONMENT, "PYTHONPATH": path}
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, check=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    for done in [typed(str(ROOT)), *(inline("hpc.launch", f"{name}.yaml") for name in ("map", "gang", "pipeline"))]:
        for part in ("mine.work.", "no slot will look", f"pip install -e {tmp_path}", f"PYTHONPATH={tmp_path}"):
            assert done.returncode == 64 and part in done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()
    perhaps = inline("hpc.launch", "map.yaml", "cluster.prelude=[module load mine]", "--dry-run")
    assert perhaps.returncode == 0 and "no slot will look" in perhaps.stderr, perhaps.stdout + perhaps.stderr
    done = typed(f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 0 and "1 of 1 done" in done.stdout, done.stdout + done.stderr


# --- what a launch does -----------------------------------------------------------------------


def test_dry_run_leaves_nothing_behind(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": texts(2)})
    before = everything(tmp_path)
    local = inline("hpc.launch", str(job.config_file), "--dry-run")
    assert local.returncode == 0 and "hpc.worker" in local.stdout and "nothing was submitted" in local.stdout
    changes = ("cluster=slurm", "cluster.slots=3", "cluster.partition=gpu")
    slurm = inline("hpc.launch", str(job.config_file), "--dry-run", *changes)
    assert slurm.returncode == 0 and "#SBATCH --array=0-" in slurm.stdout and "#SBATCH --partition=gpu" in slurm.stdout
    assert everything(tmp_path) == before


def test_no_slurm_is_said_aloud(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": texts(2)})
    bare = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "sbatch").exists())
    done = command("hpc.launch", str(job.config_file), "cluster=slurm", PATH=bare)
    assert done.returncode == 0 and "no Slurm here" in done.stderr
    job.check()


def test_a_grown_plan_continues(finished: EchoJob, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    before = {i: job.record(f"{i}.g0.done") for i in ("a", "b")}
    job.lines["c"] = texts(4)
    (job.inputs / "c.txt").write_text("\n".join(job.lines["c"]))
    done = job.launch()
    assert done.returncode == 2 and "2 of 4 shards are done" in done.stdout
    assert {i: job.record(f"{i}.g0.done") for i in ("a", "b")} == before  # finished shards are never redone
    job.check(but=("broken",))


def test_changed_input(finished: EchoJob, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    job.lines["a"] = texts(7, "other")
    (job.inputs / "a.txt").write_text("\n".join(job.lines["a"]))
    said = refused(job).stderr
    assert "changed" in said and "--supersede" in said
    done = job.launch("--supersede")
    assert done.returncode == 2, done.stdout + done.stderr
    job.check(but=("broken",))  # a shard whose input changed is stale: it was done again
    assert job.states()["a"].generation == 1 and job.states()["b"].generation == 0


def test_rerun_of_a_mended_shard(finished: EchoJob, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    job.lines["broken"] = texts(6)
    (job.inputs / "broken.txt").write_text("\n".join(job.lines["broken"]))
    unknown = inline("hpc.rerun", str(job.run.path), "--shards", "nobody")
    assert unknown.returncode == 64 and "not in the plan" in unknown.stderr
    before = everything(finished.run.path)
    done = command("hpc.rerun", str(job.run.path), f"inputs={job.inputs}")
    assert done.returncode == 0 and "reopened 1 shards" in done.stdout, done.stdout + done.stderr
    assert everything(finished.run.path) == before  # the run that was named, not the place where it was launched
    job.check()
    assert [s.generation for _, s in sorted(job.states().items())] == [0, 0, 1]
    again = inline("hpc.rerun", str(job.run.path))
    assert again.returncode == 0 and "nothing to rerun" in again.stdout


# --- status and verify ------------------------------------------------------------------------

SCHEMA = {
    "schema": int, "run": str, "path": str, "identity": str, "column": str, "kind": str, "jobs": list,
    "submission": dict, "exit": int, "shards": dict, "samples": dict, "reasons": dict, "rate": dict, "slots": dict,
    "damaged": dict, "failures": dict, "engine_deaths": dict, "logs": str,
}  # fmt: skip


def test_status_json(finished: EchoJob) -> None:
    done = inline("hpc.status", str(finished.run.path), "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == facts["exit"] == 2 and facts["schema"] == 1
    for key, kind in SCHEMA.items():
        assert isinstance(facts[key], kind), key
    assert facts["shards"] == {"total": 3, "done": 2, "damaged": 0, "running": 0, "open": 0, "failed": 1}
    assert facts["samples"] == {"ok": 44, "skipped": 0, "failed": 1, "quarantined": 0, "left": 0}
    assert (
        facts["failures"]["input: unreadable"]["example"] == "broken"
        and facts["failures"]["input: unreadable"]["where"]
    )


def test_status_fits_80_columns(finished: EchoJob) -> None:
    done = command("hpc.status", str(finished.run.path))
    assert done.returncode == 2 and max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    assert "2 of 3 done" in done.stdout and "input: unreadable" in done.stdout


def test_status_shows_what_others_wrote_but_does_not_obey_it(finished: EchoJob, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    (job.run.control / "pause").write_text("\x1b]0;owned\x07 [bold]loud[/] " + "long " * 40)
    for file in job.run.journals.glob("*.jsonl"):
        file.write_text(file.read_text().replace("input: unreadable", "\\u001b[2J[red]evil[/]"))
    done = command("hpc.status", str(job.run.path))
    assert "\x1b" not in done.stdout and "[red]evil[/]" in done.stdout and "[bold]loud[/]" in done.stdout
    assert max(map(len, done.stdout.partition("launch again:")[0].splitlines())) <= 80  # a word is not split


def test_status_survives_a_torn_journal(finished: EchoJob, tmp_path: Path) -> None:
    """Markers are the truth: without the journals' last lines, or without journals, status says the same."""
    job = copy(finished, tmp_path)
    whole = job.status()
    for file in job.run.journals.glob("*.jsonl"):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * 2 // 3] + b"\x00\xff{\n" + b'{"t": 1, "event": "seg')
    torn = job.status()
    for file in job.run.journals.glob("*.jsonl"):
        file.unlink()
    none = job.status()
    for key in ("shards", "samples", "reasons", "exit"):
        assert whole[key] == torn[key] == none[key], key


def test_verify_finds_what_changed(finished: EchoJob, tmp_path: Path) -> None:
    job = copy(finished, tmp_path)
    assert inline("hpc.verify", str(job.run.path), "--full").returncode == 0
    file = job.file("a")
    chunk = pq.read_metadata(file).row_group(0).column(0)
    data = bytearray(file.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data[begin + chunk.total_compressed_size // 2] ^= 1  # of the rows, not of the footer
    file.write_bytes(bytes(data))
    assert inline("hpc.verify", str(job.run.path)).returncode == 0  # same size and footer
    full = inline("hpc.verify", str(job.run.path), "--full")
    assert full.returncode == 1 and "--shards a" in full.stdout
    file.unlink()
    gone = inline("hpc.verify", str(job.run.path))
    assert gone.returncode == 1 and "is gone" in gone.stdout


def test_exit_codes(finished: EchoJob, tmp_path: Path) -> None:
    for module in ("hpc.status", "hpc.rerun", "hpc.verify"):
        done = inline(module, str(tmp_path / "nothing"))
        assert done.returncode == 64 and "not a run directory" in done.stderr, module
    job = copy(finished, tmp_path)
    assert inline("hpc.status", str(job.run.path)).returncode == 2
    run = Run(job.run.path)
    run.generations.open({"broken": 1}, "test")
    assert inline("hpc.status", str(job.run.path)).returncode == 1
    ledger = run.ledger(run.latest().identity)
    [shard] = [s for s in _plan(run) if s.id == "broken"]
    identity = run.latest().identity
    again = run.column_file("echo", identity, "broken", 1)
    again.parent.mkdir(parents=True, exist_ok=True)
    again.write_bytes(run.column_file("echo", identity, "a", 0).read_bytes())
    record = {"counts": {}, "rows": 0, "file": str(again.relative_to(run.path))}
    assert ledger.mark(Claim(shard, 1, 0), DONE, record)
    assert inline("hpc.status", str(job.run.path)).returncode == 0
    assert inline("hpc.worker", str(tmp_path / "nothing"), "--slot", "0").returncode == 64
    assert inline("hpc.worker", str(job.run.path), "--slot", "0", "--submission", "unknown").returncode == 64


def _plan(run: Run) -> list:
    return list(Plan(run.plans, run.latest().plan).shards())


# --- login nodes and layers -------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    ["launch --dry-run", "launch --check", "status", "rerun --shards nobody", "verify"],
    ids=lambda typed: typed,
)
def test_what_they_import(finished: EchoJob, typed: str) -> None:
    """Neither torch nor transformers, nor what only remote files need; and no more modules than it takes."""
    name, *rest = typed.split()
    what = str(ROOT / "configs/caption/demo.yaml") if rest == ["--dry-run"] else str(finished.run.path)
    what = str(finished.config_file) if rest == ["--check"] else what
    code = (
        f"import sys, runpy\nsys.argv = {[f'hpc.{name}', what, *rest]!r}\n"
        f"try:\n    runpy.run_module('hpc.{name}', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
                          check=True)  # fmt: skip
    loaded = set(done.stdout.rpartition("MODULES ")[2].split())
    assert "hpc.run.directory" in loaded and not loaded & {"torch", "transformers", "datasets"}
    if rest != ["--check"] and name != "verify":  # which read input or columns, as the work does
        assert not loaded & {"pandas", "fsspec", "aiohttp", "asyncio", "submitit"} and len(loaded) < 800, len(loaded)


def cpu(*command: str) -> float:
    """User and system seconds that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr  # 2: the run has a failed shard
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("name", ["launch", "status"])
def test_they_start_in_time(finished: EchoJob, name: str) -> None:
    """By CPU time, which a loaded machine stretches little, against that of importing pyarrow, which both need: the
    least of three of the one and of up to three of the other.
    """
    typed = {"launch": [str(finished.config_file), "--dry-run"], "status": [str(finished.run.path)]}[name]
    least = min(cpu(sys.executable, "-c", "import pyarrow.parquet") for _ in range(3))
    taken: list[float] = []
    while not taken or (min(taken) >= 4.5 * least and len(taken) < 3):
        taken.append(cpu(sys.executable, "-m", f"hpc.{name}", *typed))
    assert min(taken) < 4.5 * least, (taken, least)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


CLUSTER = {  # submission, claim and status code: the work knows nothing of it
    f"hpc.{name}"
    for name in ("alone", "launch", "launcher", "local", "agent", "worker", "engine", "engine_process", "ledger",
                 "candidates", "heartbeat", "publish", "journal", "status", "rerun", "verify", "snapshot", "breaker",
                 "preflight", "blame", "gate", "gang", "gang_launch", "gang_launcher", "gang_status", "local_gang",
                 "pipeline", "pipeline_launch", "pipeline_outlook", "pipeline_run", "pipeline_status", "stage",
                 "stage_launcher", "stage_progress", "trial", "trial_launch", "trial_launcher")
}  # fmt: skip


def test_layers() -> None:
    for file in (ROOT / "recap").rglob("*.py"):
        assert not imports(file) & CLUSTER, f"{file} imports {imports(file) & CLUSTER}"
    for file in (ROOT / "hpc").rglob("*.py"):
        wrong = {m for m in imports(file) if m.split(".")[0] in ("recap", "torch", "transformers", "PIL", "webdataset")}
        assert not wrong, f"{file} imports {wrong}: hpc knows of the work by dotted path alone"


def test_one_module_knows_the_accelerator() -> None:
    """`torch.cuda` stands in recap/device.py alone: another accelerator is one file away."""
    for file in [*(ROOT / "hpc").rglob("*.py"), *(ROOT / "recap").rglob("*.py")]:
        if file == ROOT / "recap/device.py":
            continue
        assert "torch.cuda" not in imports(file), file
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr != "cuda", f"{file}:{node.lineno}: use recap.device"


def test_the_code_snapshot_is_what_ran(finished: EchoJob) -> None:
    code = finished.run.code / finished.run.latest().code
    assert sorted(os.listdir(code)) == ["hpc", "recap"]
    assert (code / "hpc/map/agent.py").read_bytes() == (ROOT / "hpc/map/agent.py").read_bytes()
    assert not (code / "hpc/map/agent.py").stat().st_mode & 0o222


def test_a_launch_is_on_disk_before_anything_runs(finished: EchoJob) -> None:
    submission = finished.run.submissions()[0]
    assert submission.state == "submitted" and submission.created < time.time()
    assert submission.config["operator"] == "tests.support.echo.Echo" and submission.config["map"]["segment"] == 8
    assert finished.record("a.g0.done")["input"]["uri"] == str(finished.inputs / "a.txt")
