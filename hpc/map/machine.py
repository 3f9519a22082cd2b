"""Where this process runs: host, job, log, and the devices for its engines."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

from hpc import config as configs


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
    }


def log_name() -> str:
    return os.environ.get("HPC_LOG", "")


def devices(cluster: configs.ClusterConfig) -> Iterable[dict[str, str]]:
    """One environment per engine: its own GPUs, as Slurm names them (indices, UUIDs, MIG), or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = [d for d in visible.split(",") if d] or [str(i) for i in range(cluster.gpus_per_node)]
    if not cluster.gpus_per_node:
        return [{"device": "cpu", "CUDA_VISIBLE_DEVICES": ""} for _ in range(cluster.engines_per_node)]
    device = cluster.device or "cuda"
    each = cluster.gpus_per_engine
    whole = min(len(ids), cluster.gpus_per_node) // each
    return [
        {"device": device, "CUDA_VISIBLE_DEVICES": ",".join(ids[at * each : (at + 1) * each])} for at in range(whole)
    ]


def engines(cluster: configs.ClusterConfig) -> int:
    """Engine processes of this node."""
    return len(list(devices(cluster)))


def counted(cluster: configs.ClusterConfig) -> int:
    """Hours that an hour of one engine counts: one for each of its GPUs."""
    return cluster.gpus_per_engine if cluster.gpus_per_node else 1


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
