"""Tasks of one job step (`srun`, or torchrun) that meet to share an evaluation."""

from __future__ import annotations

import os
import subprocess

import torch.distributed as dist

from recap import device as gpu


def join_step() -> None:
    """Join the other tasks of this step over gloo, and take this one's device. Nothing where there are no others."""
    environment = os.environ
    if "WORLD_SIZE" in environment:
        rank, world = int(environment.get("RANK", 0)), int(environment["WORLD_SIZE"])
    else:  # not SLURM_NTASKS: a batch script, which is one process, has it too
        rank, world = int(environment.get("SLURM_PROCID", 0)), int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if world == 1 or dist.is_initialized():
        return
    gpu.claim(int(environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or 0))
    environment.setdefault("MASTER_ADDR", _first_host())
    environment.setdefault("MASTER_PORT", str(_port()))
    dist.init_process_group("gloo", rank=rank, world_size=world)


def _first_host() -> str:
    """Where the step's first task runs."""
    if os.environ.get("SLURM_STEP_NUM_NODES", "1") == "1":
        return "127.0.0.1"
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def _port() -> int:
    """The same for every task of a step, another for each step."""
    job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20000 + (job + 131 * step + 6007) % 12000
