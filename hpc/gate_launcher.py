"""Submission of the gate job behind a map job's array (see hpc.gate)."""

from __future__ import annotations

from typing import Any

from hpc.config import ClusterConfig
from hpc.launcher import Launcher
from hpc.rundir import Run, Submission


class GateLauncher(Launcher):
    """One task on one CPU, after any end of the array."""

    log_pattern = "gate-%j.log"
    element = "${SLURM_JOB_ID}"
    place = "gate"

    def __init__(self, run: Run, submission: Submission, cluster: ClusterConfig, array: str, allow_failed: int) -> None:
        self._array, self._allow_failed = array, allow_failed
        super().__init__(run, submission, cluster)

    def _shape(self) -> None:
        """No array."""

    def _parameters(self) -> dict[str, Any]:
        """The array's place (partition, account, QOS), not its size."""
        parameters = super()._parameters()
        for sized in ("gpus_per_node", "gres", "nodelist", "constraint", "dependency"):
            parameters.pop(sized, None)
        parameters |= {"cpus_per_task": 1, "time": "15", "mem": "2000M", "job_name": f"{self.run.name}-gate"}
        parameters["comment"] = f"{self.submission.uuid}-gate"
        parameters["dependency"] = f"afterany:{self._array}"
        return parameters

    def worker_command(self) -> str:
        gate = self.start("hpc.gate", python=self.host_python)
        return f"{gate} {self.directory} --allow-failed {self._allow_failed}"
