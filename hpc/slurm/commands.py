"""How this toolkit calls Slurm's commands: all of them, and all in the environment that is made here.

Slurm's commands take options from the environment too (SQUEUE_STATES, SCANCEL_USER, SBATCH_ARRAY_INX, SLURM_CLUSTERS,
...). What a user has set there for work at the terminal would filter what we are told of our jobs, and win over what a
batch script states. Some of it is a site's way of saying who pays and where: that stays a default of submissions.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence

_READ_BY_SLURM = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SACCT|SCONTROL|SINFO)_")
_WHICH_SLURM = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where the controller is, and who asks

# Variables of sbatch whose option has another name; all others are SBATCH_<OPTION>. See sbatch(1).
_OPTION = {
    "ARRAY_INX": "array", "TIMELIMIT": "time", "NO_REQUEUE": "requeue", "DEBUG": "verbose", "CPU_FREQ_REQ": "cpu-freq",
    "REQ_SWITCH": "switches", "WAIT4SWITCH": "switches", "MEM_PER_NODE": "mem", "BURST_BUFFER": "bb",
}  # fmt: skip
# Options that exclude others, or say the same in another way: who states the first has stated the second.
_STATES_ALSO = {
    "output": ("error", "input"), "mem": ("mem-per-cpu", "mem-per-gpu"), "cpus-per-task": ("cpus-per-gpu",),
}  # fmt: skip
# Stated by every submission, by leaving them out: one job unless it says array, the default cluster (where we look for
# it afterwards), no GPUs unless it asks for them, and an sbatch that returns.
_ALWAYS = ("array", "clusters", "wait", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres")


def environment() -> dict[str, str]:
    """The environment of every Slurm command but sbatch: nothing in it is an option of theirs."""
    return {k: v for k, v in os.environ.items() if k in _WHICH_SLURM or not _READ_BY_SLURM.match(k)}


def sbatch_environment(stated: Iterable[str]) -> dict[str, str]:
    """The environment of an sbatch whose script or command line states these options (`time`, `array`, ...).

    SBATCH_ACCOUNT and its like are defaults where they are not stated. Nothing of a job in which we may run is handed
    on: its memory and GPUs would break the new job's srun.
    """
    options = {*stated, *_ALWAYS}
    options |= {other for option in options for other in _STATES_ALSO.get(option, ())}
    defaults = {k: v for k, v in os.environ.items() if k.startswith("SBATCH_") and _option(k) not in options}
    return environment() | defaults


def _option(variable: str) -> str:
    """The option of sbatch that a variable sets.

    >>> _option("SBATCH_TIMELIMIT"), _option("SBATCH_GPUS_PER_NODE")
    ('time', 'gpus-per-node')
    """
    name = variable.removeprefix("SBATCH_")
    return _OPTION.get(name, name.lower().replace("_", "-"))


def stated(script: str) -> list[str]:
    """The options that a batch script states."""
    return re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE)


def run(
    command: Sequence[str], timeout: float | None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command; what it printed. Raises FileNotFoundError, or subprocess.TimeoutExpired."""
    env = environment() if env is None else env
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
