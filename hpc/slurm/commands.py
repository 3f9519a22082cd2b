"""How this toolkit calls Slurm's commands, and in which environment. Every call goes through here.

Slurm's commands take options from the environment too (SQUEUE_STATES, SCANCEL_USER, SBATCH_ARRAY_INX, SLURM_CLUSTERS,
...). What a user has set there for work at the terminal would hide jobs of ours, and would override what a batch script
says. Some of these variables are how a site says who pays and where jobs go: they stay as defaults of submissions.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence

_READ_BY_SLURM = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SACCT|SCONTROL|SINFO)_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where the controller is, and who asks it

# Variables of sbatch whose option has another name; all others are SBATCH_<OPTION>. See sbatch(1).
_OPTION = {
    "ARRAY_INX": "array", "TIMELIMIT": "time", "NO_REQUEUE": "requeue", "DEBUG": "verbose", "CPU_FREQ_REQ": "cpu-freq",
    "REQ_SWITCH": "switches", "WAIT4SWITCH": "switches", "MEM_PER_NODE": "mem", "BURST_BUFFER": "bb",
}  # fmt: skip
# An option that a script states (left) also settles these others (right), which exclude it or say the same otherwise.
_STATES_ALSO = {
    "output": ("error", "input"), "mem": ("mem-per-cpu", "mem-per-gpu"), "cpus-per-task": ("cpus-per-gpu",),
}  # fmt: skip
# Options that are settled even where a script leaves them out: then it is one job and no array, it goes to the default
# cluster (where we look for it afterwards), it has no GPUs, and sbatch returns at once.
_ALWAYS = ("array", "clusters", "wait", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres")


def environment() -> dict[str, str]:
    """The environment of every Slurm command but sbatch: ours without all variables that are options of theirs."""
    return {k: v for k, v in os.environ.items() if k in _KEPT or not _READ_BY_SLURM.match(k)}


def sbatch_environment(stated: Iterable[str]) -> dict[str, str]:
    """The environment of an sbatch whose script or command line states these options (`time`, `array`, ...).

    Variables such as SBATCH_ACCOUNT are kept for options that are not stated. The variables of a job in which this
    process may run itself are not kept: its memory and GPUs would break the srun of the new job.
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


def options_in(script: str) -> list[str]:
    """The options that a batch script states in its #SBATCH lines."""
    return re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE)


def run(
    command: Sequence[str], timeout: float | None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command and capture its output; the exit code is the caller's to check. timeout: seconds.

    Raises FileNotFoundError where Slurm is not installed, or subprocess.TimeoutExpired.
    """
    env = environment() if env is None else env
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
