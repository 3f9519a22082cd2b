"""Submission of the gate job behind a map job's array (see hpc.gate)."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from hpc import container
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
        # on the host, where sbatch and squeue are; a container's image has neither
        contained = self.cluster.container is not None
        python = shlex.quote(sys.executable) if contained else container.python(self.cluster, self.run.path)
        return f"{python} -P -m hpc.gate {shlex.quote(str(self.run.path))} --allow-failed {self._allow_failed}"
