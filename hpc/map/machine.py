"""Where this process runs: host, job, log, and how many engines there are."""

from __future__ import annotations

import os
import socket
from typing import Any

from hpc import config as configs
from hpc.config.devices import devices
from hpc.run import allocations


def describe() -> dict[str, Any]:
    """Who we are, for people: host, process, and the job as Slurm names it."""
    env = os.environ
    job = env.get("SLURM_JOB_ID", "")
    if env.get("SLURM_ARRAY_JOB_ID"):
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '')}"
    return {
        "host": env.get("SLURMD_NODENAME") or socket.gethostname(),
        "pid": os.getpid(),
        "job": job,
        "log": log_name(),
        "allocation": allocations.this_life(),
    }


def log_name() -> str:
    return os.environ.get("HPC_LOG", "")


def engines(cluster: configs.ClusterConfig) -> int:
    """Engine processes of this node."""
    return len(list(devices(cluster)))


def hour_weight(cluster: configs.ClusterConfig) -> int:
    """How many hours an hour of one engine counts: one for each of its GPUs."""
    return cluster.gpus_per_engine if cluster.gpus_per_node else 1


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
