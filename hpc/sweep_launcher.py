"""Submission of a sweep: one Slurm array whose every element is a gang, on nodes of its own."""

from __future__ import annotations

import shlex

from hpc.config import ClusterConfig, GangConfig
from hpc.gang_launcher import GangLauncher
from hpc.launcher import Launcher
from hpc.rundir import Run, Submission


class SweepLauncher(GangLauncher):
    """Renders and submits the array. arms: names of run directories below the sweep's, in the elements' order."""

    log_pattern = Launcher.log_pattern
    element = Launcher.element
    place = "arm $arm"

    def __init__(
        self, run: Run, submission: Submission, cluster: ClusterConfig, gang: GangConfig, arms: list[str]
    ) -> None:
        self._arms = arms
        super().__init__(run, submission, cluster, gang)

    def _shape(self) -> None:
        self.parameters["map_count"] = len(self._arms)

    def _halve(self) -> bool:
        return False  # an arm is not a slot: none can be left out

    @property
    def directory(self) -> str:
        return f'{shlex.quote(str(self.run.path))}/"$arm"'

    def _setup(self) -> list[str]:
        return [*super()._setup(), f"arms=({shlex.join(self._arms)})", "arm=${arms[$SLURM_ARRAY_TASK_ID]}"]
