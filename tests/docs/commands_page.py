"""Every command, exit code and environment variable: what docs/commands.md is made from.

python -m tests.docs.commands_page > docs/commands.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpc.__main__ import HIDDEN
from hpc.base.command_list import commands
from hpc.base.errors import Exit

ROOT = Path(__file__).parents[2]

EXIT_CODES = {
    Exit.COMPLETE: "complete: every shard is done, the check holds, the question was answered",
    Exit.INCOMPLETE: "incomplete: work is left that this process can do nothing for, or `hpc.verify` found damage",
    Exit.SOME_FAILED: "nothing is left to do, but shards failed or gave nothing, or no sample is ok",
    Exit.USAGE: "the command, the config or the run directory is wrong; a second try would not help",
    Exit.CRASHED: "an error that nobody foresaw: its traceback is in the log",
    Exit.REQUEUE: "stopped early (time limit, preemption): run it again; Slurm jobs of ours are requeued",
    Exit.TERMINATED: "told to end by TERM, and drained",
}

# Set by the user, the site or Slurm, and read by us. A test compares the names with the source.
VARIABLES = {
    "HPC_LOG": "level of the logs of slots, e.g. DEBUG; set it in the prelude or before a launch",
    "HPC_WEBHOOK": "address that is told when a map run ends, see [operating.md](operating.md)",
    "HPC_LIFE": "set by the batch script or the local supervisor: what its record calls this life of a slot",
    "OPENAI_API_KEY": "key of an endpoint; another variable is named by `captioner.endpoint_key_env`",
    "HF_HOME": "where models of the Hugging Face hub lie",
    "HF_HUB_CACHE": "the same, before `HF_HOME`",
    "XDG_CACHE_HOME": "where digests of weights are remembered, in `recap/` (default: ~/.cache)",
    "WANDB_PROJECT": "project of `train.trackers=[wandb]`",
    "CUDA_VISIBLE_DEVICES": "GPUs of a slot; split among its engines, never renumbered",
    "TRITON_INTERPRET": "1: the kernels run on the CPU, for tests",
    "PYTHONPATH": "given to the processes that we start, for operators and trainers of your own",
    "MASTER_ADDR": "of a gang, where something else than Slurm starts its ranks",
    "MASTER_PORT": "the same",
    "RANK": "the same",
    "WORLD_SIZE": "the same",
    "LOCAL_RANK": "the same",
    "LOCAL_WORLD_SIZE": "the same",
    "SBATCH_PARTITION": "the partition where `cluster.partition` names none, as sbatch takes it",
    "SLURM_ARRAY_TASK_ID": "set by Slurm: tasks of an array may not publish",
    "SLURM_JOB_ID": "set by Slurm",
    "SLURM_JOB_END_TIME": "set by Slurm: when this life ends",
    "SLURM_JOB_START_TIME": "set by Slurm: when this life began, which its hours count from",
    "SLURM_MEM_PER_NODE": "set by Slurm: what a rank may hold of images",
    "SLURM_PROCID": "set by Slurm",
    "SLURM_RESTART_COUNT": "set by Slurm: how often a job was requeued",
    "SLURM_STEP_ID": "set by Slurm",
    "SLURM_STEP_NODELIST": "set by Slurm",
    "SLURM_STEP_NUM_NODES": "set by Slurm",
}


def page() -> str:
    """The whole of docs/commands.md."""
    lines = ["# Commands, exit codes, environment variables", "", "Made by `python -m tests.docs.commands_page`."]
    for package, title in (("hpc", "Jobs"), ("recap", "The work"), ("benchmarks", "Benchmarks and studies")):
        lines += ["", f"## {title}", "", "| command | |", "|---|---|"]
        found = dict(commands(ROOT / package))
        lines += [f"| `python -m {name}` | {text} |" for name, text in found.items() if name not in HIDDEN]
    lines += ["", "Each has `--help`, with examples. Started by these, and by nobody else: "]
    lines[-1] += ", ".join(f"`{name}`" for name in HIDDEN) + "."
    lines += ["", "## Exit codes", "", "The same for every command.", "", "| code | |", "|---|---|"]
    lines += [f"| {int(code)} | {text} |" for code, text in EXIT_CODES.items()]
    lines += ["", "## Environment variables", "", "| variable | |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in VARIABLES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
