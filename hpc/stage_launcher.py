"""Submission of a stage job (see hpc.stage)."""

from __future__ import annotations

import dataclasses
from typing import Any

from hpc.config import ClusterConfig
from hpc.launcher import Launcher
from hpc.rundir import Run, Submission


class StageLauncher(Launcher):
    """One task, behind the stage jobs of its needs. A command has the stage's resources, a job's stage job one CPU.

    after: ids of jobs that must end well first; dependency: what the whole pipeline waits for.
    """

    element = "${SLURM_JOB_ID}"
    place = "stage job"

    def __init__(
        self, run: Run, submission: Submission, cluster: ClusterConfig, after: list[str], dependency: str | None
    ) -> None:
        self._dependency = ",".join(filter(None, [f"afterok:{':'.join(after)}" if after else "", dependency]))
        self._stage = str(submission.config["stage"])
        self.log_pattern = f"{self._stage}-%j.log"
        small = dataclasses.replace(cluster, time="60", gpus_per_node=0, gres=None, cpus_per_node=1, mem_gb=2.0)
        if not submission.config["command"]:  # where, but neither on how much nor on which nodes
            cluster = dataclasses.replace(small, constraint=None, nodelist=None)
        super().__init__(run, submission, cluster)

    def _shape(self) -> None:
        """No array."""

    def _parameters(self) -> dict[str, Any]:
        parameters = super()._parameters() | {"job_name": f"{self.run.name}-{self._stage}"}
        parameters.pop("dependency", None)
        if self._dependency:
            parameters["dependency"] = self._dependency
        parameters["additional_parameters"]["kill-on-invalid-dep"] = "yes"
        return parameters

    def worker_command(self) -> str:
        stage = self.start("hpc.stage", python=self.host_python)
        return f"{stage} {self.directory} --submission {self.submission.uuid}"
