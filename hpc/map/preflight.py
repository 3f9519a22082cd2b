"""Checks whether this node can work for a run. Each slot does so before it loads a model; every problem is said with
what to do.

A node that fails leaves its work to others and is not used again (see hpc.map.breaker).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

from hpc.base import atomic, object_store, shared_environment
from hpc.base.errors import UserError
from hpc.config import Config
from hpc.map import breaker
from hpc.operator import KnowsItsGpus, LimitsSetup, LimitsWaits, Operator
from hpc.run.directory import Run, Submission

log = logging.getLogger("agent")

BUSY_SHARE = 0.5  # of a GPU's memory in use before we start: somebody else's process lives there


def unfit(run: Run, submission: Submission, config: Config, operator: Operator, host: str) -> str:
    """Why a node must not work for the run, "" if it may."""
    if host in (known := breaker.excluded(run)):
        return f"node {host} is excluded: {known[host]} (control/excluded/{host})"
    if shared := disk_problems_of_run(run, config):
        return "preflight: " + "; ".join(shared)
    found = "; ".join(problems(run, submission, config, operator))
    return breaker.blame_node(run, submission.uuid, host, f"preflight: {found}") if found else ""


def problems(run: Run, submission: Submission, config: Config, operator: Operator) -> list[str]:
    """What makes this node unfit; [] if nothing does. What would only make it slow is logged."""
    if said := shared_environment.warning():
        log.warning("preflight: %s", said)
    found = _run_directory(run, submission)
    if config.run.output:
        name = f"{run.name}/probe-{submission.uuid}-{os.urandom(4).hex()}"
        found += [text] if (text := object_store.problem(config.run.output, name)) else []
    if config.run.cluster.gpus_per_node and config.run.cluster.device != "cpu":
        found += _gpus(config.run.cluster.gpus_per_node)
    return found + operator.preflight()


def check_devices(config: Config, operator: Operator) -> None:
    """Raise UserError where an engine would leave GPUs idle that it was given."""
    gpus = config.run.cluster.gpus_per_engine
    why = operator.one_gpu() if isinstance(operator, KnowsItsGpus) else "this operator uses one"
    if gpus > 1 and why:
        raise UserError(f"config: `cluster.gpus_per_engine`: {gpus}, and {why}. Write 1.")


def check_waits(config: Config, operator: Operator) -> None:
    """Raise UserError where an operator may wait so long for a service that the engine would be killed as hung, and a
    good sample blamed for it.
    """
    seconds, key = operator.longest_wait() if isinstance(operator, LimitsWaits) else (0.0, "")
    if seconds >= config.run.map.hang_s:
        raise UserError(
            f"config: `{key}`: with all its tries a request may take {seconds:g} s, and an engine without a finished "
            f"sample is killed after map.hang_s={config.run.map.hang_s:g} s. Lower the one or raise the other."
        )
    seconds, key = operator.longest_setup() if isinstance(operator, LimitsSetup) else (0.0, "")
    if seconds >= config.run.map.setup_s:
        raise UserError(
            f"config: `{key}`: {seconds:g} s, and an engine that is not ready after map.setup_s="
            f"{config.run.map.setup_s:g} s is killed. Lower the one or raise the other."
        )


def _run_directory(run: Run, submission: Submission) -> list[str]:
    """Problems with the run directory on this node: it is not writable, or link() does not refuse a taken name."""
    probe = run.control / f"probe-{submission.uuid}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        if atomic.excludes(probe):
            return []
    except OSError as error:
        return [f"run directory: {run.path} cannot be written from this node: {error}"]
    return [f"run directory: link() does not exclude on {run.path}: mount it with POSIX semantics"]


def disk_problems_of_run(run: Run, config: Config) -> list[str]:
    """Whether the file system of the run is full. All nodes share it, so that no node is to blame for that."""
    return disk_problems(run.path, config.run.map.min_free_gb)


def disk_problems(path: Path, least_gb: float) -> list[str]:
    """What a file system lacks in free bytes (GB are 10⁹) or inodes; [] where it has enough."""
    stat = os.statvfs(path)
    free_gb = stat.f_bavail * stat.f_frsize / 1e9
    if free_gb < least_gb:
        return [f"disk: {free_gb:.1f} GB free on {path}, at least {least_gb:g} GB are needed (map.min_free_gb)"]
    if stat.f_files and stat.f_favail < 1000:
        return [f"disk: {stat.f_favail} inodes free on {path}, at least 1000 are needed"]
    return []


def _gpus(wanted: int) -> list[str]:
    """GPUs that are missing, or whose memory another process fills. [] also where nvidia-smi is not there to ask."""
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    if visible and len(visible) < wanted:
        return [f"GPU: {len(visible)} visible, the job wants {wanted}"]
    # nvidia-smi takes no names of MIG devices, and has no memory of theirs.
    if not shutil.which("nvidia-smi") or any(name.startswith("MIG-") for name in visible):
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits"]
    if visible:
        query.insert(1, f"--id={','.join(visible)}")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return ["GPU: nvidia-smi hangs: the driver of this node is broken"]
    if done.returncode:
        return [f"GPU: nvidia-smi fails: {(done.stderr or done.stdout).strip()[:200]}"]
    rows = [[field.strip() for field in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    if len(rows) < wanted:
        return [f"GPU: {len(rows)} visible, the job wants {wanted}"]
    return [
        f"GPU {index}: {used} of {total} MiB are in use before the job starts: another process lives there"
        for index, used, total in rows
        if used.isdigit() and total.isdigit() and int(used) > BUSY_SHARE * int(total)
    ]
