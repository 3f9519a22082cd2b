"""Submission of a gang: one Slurm job over several nodes, one task per GPU, all of them together or none."""

from __future__ import annotations

import shlex
from typing import Any

from hpc import container
from hpc.config import ClusterConfig, GangConfig
from hpc.launcher import Launcher
from hpc.rundir import Run, Submission


class GangLauncher(Launcher):
    """Renders and submits one job of nodes × ranks."""

    log_pattern = "%j.log"
    element = "${SLURM_JOB_ID}"
    place = "gang"

    def __init__(self, run: Run, submission: Submission, cluster: ClusterConfig, gang: GangConfig) -> None:
        self._nodes, self._ranks = gang.nodes, ranks_per_node(cluster)
        super().__init__(run, submission, cluster)

    def _shape(self) -> None:
        """No array."""

    def _parameters(self) -> dict[str, Any]:
        parameters = super()._parameters()
        parameters |= {"nodes": self._nodes, "ntasks_per_node": self._ranks}
        if self.cluster.cpus_per_node:
            parameters["cpus_per_task"] = max(1, self.cluster.cpus_per_node // self._ranks)
        return parameters

    def _setup(self) -> list[str]:
        """Ranks meet at the first node, where this script runs; the port follows from the job and its life, and is not
        that of the next job's first life."""
        port = "$((20000 + (SLURM_JOB_ID + 997 * ${SLURM_RESTART_COUNT:-0}) % 12000))"
        return [*super()._setup(), 'export MASTER_ADDR="$(hostname)"', f"export MASTER_PORT={port}"]

    def worker_command(self) -> str:
        srun_args = container.srun_arguments(self.cluster, self.run.path)
        srun = shlex.join(["srun", "--unbuffered", "--label", "--kill-on-bad-exit=1", *srun_args])
        gang = f"{self.start('hpc.gang')} {self.directory} --submission {self.submission.uuid}"
        begin = f"{gang} --begin"
        if self.cluster.container is not None:
            begin = f"{shlex.join(['srun', '--nodes=1', '--ntasks=1', *srun_args])} {begin}"
        return f"{begin} && {srun} {gang}"


def ranks_per_node(cluster: ClusterConfig) -> int:
    return cluster.gpus_per_node or cluster.engines_per_node
