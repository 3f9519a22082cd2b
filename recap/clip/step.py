"""Connects the tasks of one job step (`srun`, or torchrun), so that they share an evaluation."""

from __future__ import annotations

import os
import subprocess

import torch.distributed as dist

from recap import device as gpu


def join_step() -> None:
    """Connect to the other tasks of this step by gloo, and choose this task's device. Does nothing for a single
    task."""
    environment = os.environ
    if "WORLD_SIZE" in environment:
        rank, world = int(environment.get("RANK", 0)), int(environment["WORLD_SIZE"])
    else:  # SLURM_NTASKS is not used: batch scripts, which are one process, have it too
        rank, world = int(environment.get("SLURM_PROCID", 0)), int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if world == 1 or dist.is_initialized():
        return
    gpu.claim(int(environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or 0))
    environment.setdefault("MASTER_ADDR", _first_host())
    environment.setdefault("MASTER_PORT", str(_port()))
    dist.init_process_group("gloo", rank=rank, world_size=world)


def _first_host() -> str:
    """The host of the step's first task."""
    if os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def _port() -> int:
    """A port that all tasks of a step agree on, and that differs between steps."""
    job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20000 + (job + 131 * step + 6007) % 12000
