"""Submission of the one job that tries the work before an array is submitted (see hpc.trial_launch)."""

from __future__ import annotations

from typing import Any

from hpc.cluster_checks import slurm_seconds
from hpc.config import ClusterConfig, MapConfig
from hpc.launcher import Launcher
from hpc.rundir import Run, Submission


class TrialLauncher(Launcher):
    """One job with a slot's resources, for as long as a set-up and one sample may take. It is not requeued."""

    log_pattern = "check-%j.log"
    element = "${SLURM_JOB_ID}"
    place = "check"

    def __init__(self, run: Run, submission: Submission, cluster: ClusterConfig, settings: MapConfig) -> None:
        self._seconds = settings.setup_s + settings.hang_s + cluster.signal_delay_s + 120
        super().__init__(run, submission, cluster)

    def _shape(self) -> None:
        """No array."""

    def _parameters(self) -> dict[str, Any]:
        parameters = super()._parameters() | {"job_name": f"{self.run.name}-check"}
        if self._seconds < slurm_seconds(self.cluster.time):  # a short job starts earlier
            parameters["time"] = str(-(-int(self._seconds) // 60))
        further = {**parameters["additional_parameters"], "no_requeue": True}
        further.pop("requeue", None)
        return {**parameters, "additional_parameters": further}

    def _tail(self) -> list[str]:
        return ['exit "$code"']

    def worker_command(self) -> str:
        return self.on_the_node("hpc.trial", f"--check {self.submission.uuid}")
