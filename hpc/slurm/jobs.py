"""The batch scripts of jobs other than the array of a map job's slots (that one: hpc.slurm.submission.Launcher). They
are those of gangs, sweeps, checks (`--check`), gates and stages.
"""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from hpc.config import ClusterConfig, GangConfig, MapConfig
from hpc.config.cluster_checks import slurm_seconds
from hpc.run.directory import Run, Submission
from hpc.slurm import container
from hpc.slurm.submission import Launcher


class GangLauncher(Launcher):
    """Renders and submits one job of nodes × ranks."""

    log_pattern = "%j.log"
    element = "${SLURM_JOB_ID}"
    label = "gang"
    records_lives = False

    def __init__(self, run: Run, submission: Submission, cluster: ClusterConfig, gang: GangConfig) -> None:
        self._nodes, self._ranks = gang.nodes, cluster.workers_per_node
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
        """Ranks meet at the first node, where this script runs. The port is made of the job's id and the number of its
        life, so that neither the life before nor the next job has the same one.
        """
        port = "$((20000 + (SLURM_JOB_ID + 997 * ${SLURM_RESTART_COUNT:-0}) % 12000))"
        return [*super()._setup(), 'export MASTER_ADDR="$(hostname)"', f"export MASTER_PORT={port}"]

    def worker_command(self) -> str:
        srun_args = container.srun_arguments(self.cluster, self.run.path)
        srun = shlex.join(["srun", "--unbuffered", "--label", "--kill-on-bad-exit=1", *srun_args])
        gang = f"{self.start('hpc.gang.rank')} {self.directory} --submission {self.submission.uuid}"
        begin = f"{gang} --begin"
        if self.cluster.container is not None:
            begin = f"{shlex.join(['srun', '--nodes=1', '--ntasks=1', *srun_args])} {begin}"
        return f"{begin} && {srun} {gang}"


class SweepLauncher(GangLauncher):
    """Renders and submits the array. arms: names of run directories below the sweep's, in the elements' order."""

    log_pattern = Launcher.log_pattern
    element = Launcher.element
    label = "arm $arm"

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


class GateLauncher(Launcher):
    """One task on one CPU that starts when the array has ended, well or not. array: the id of its job."""

    log_pattern = "gate-%j.log"
    element = "${SLURM_JOB_ID}"
    label = "gate"
    records_lives = False

    def __init__(self, run: Run, submission: Submission, cluster: ClusterConfig, array: str, allow_failed: int) -> None:
        self._array, self._allow_failed = array, allow_failed
        super().__init__(run, submission, cluster)

    def _shape(self) -> None:
        """No array."""

    def _parameters(self) -> dict[str, Any]:
        """The array's partition, account and QOS, but not its nodes and its size."""
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


class TrialLauncher(Launcher):
    """The job of `--check`: a slot's resources for as long as a set-up and one sample may take. It is not requeued."""

    log_pattern = "check-%j.log"
    element = "${SLURM_JOB_ID}"
    label = "check"
    records_lives = False

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
        return self.on_the_node("hpc.map.check", f"--check {self.submission.uuid}")


class StageLauncher(Launcher):
    """The stage job of a pipeline's stage: one task, which starts when the stage jobs of its needs have ended well. It
    has the stage's resources where the stage is a command, and one CPU where it launches a job of its own.

    after: ids of the stage jobs of its needs; dependency: what the whole pipeline waits for.
    """

    element = "${SLURM_JOB_ID}"
    label = "stage job"
    records_lives = False

    def __init__(
        self, run: Run, submission: Submission, cluster: ClusterConfig, after: list[str], dependency: str | None
    ) -> None:
        self._dependency = ",".join(filter(None, [f"afterok:{':'.join(after)}" if after else "", dependency]))
        self._stage = str(submission.config["stage"])
        self.log_pattern = f"{self._stage}-%j.log"
        small = dataclasses.replace(cluster, time="60", gpus_per_node=0, gres=None, cpus_per_node=1, mem_gb=2.0)
        if not submission.config["command"]:  # the stage's partition and account, but one CPU on any node
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
        stage = self.start("hpc.pipeline.stage", python=self.host_python)
        return f"{stage} {self.directory} --submission {self.submission.uuid}"
