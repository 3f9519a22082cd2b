"""The jobs of a drill. They are what the cluster profile says, but for their time limits and their number. All carry
the name of the drill's folder, and keep their temporary files there.
"""

from __future__ import annotations

import dataclasses
import shlex
import uuid
from typing import Any

from hpc.config import ClusterConfig
from hpc.drilling.place import Place
from hpc.drilling.session import Session
from hpc.run.directory import Run, Submission
from hpc.slurm import container
from hpc.slurm.submission import Launcher

# Of the job that waits for USR2: its time limit in minutes, and how many seconds before that the signal is asked for.
# So it comes during the first minute, give or take the 30 s between two looks of Slurm.
LIMIT_MIN, WARNED_S = 2, 60


def own(cluster: ClusterConfig, place: Place, **changes: Any) -> ClusterConfig:
    """The profile for a job of this drill: it depends on nothing, and has its temporary files in the drill's folder."""
    prelude = [*cluster.prelude, f"export TMPDIR={shlex.quote(str(place.temporary))}"]
    return dataclasses.replace(cluster, prelude=prelude, dependency=None, gate=False, parallel=None, **changes)


class DrillLauncher(Launcher):
    """One job, which is not requeued."""

    log_pattern = "%j.log"
    element = "${SLURM_JOB_ID}"
    what = "drill"

    def __init__(self, place: Place, cluster: ClusterConfig, code: str, slots: int = 1) -> None:
        self.log_pattern = f"{self.what}-{type(self).log_pattern}"
        super().__init__(place.run, _submission(code, slots), cluster)

    def _shape(self) -> None:
        """No array."""

    def _halve(self) -> bool:
        return False

    def _parameters(self) -> dict[str, Any]:
        parameters = super()._parameters()
        further = {**parameters["additional_parameters"], "no_requeue": True}
        further.pop("requeue", None)
        return {**parameters, "additional_parameters": further}

    def _tail(self) -> list[str]:
        return ['exit "$code"']


class HeldArray(DrillLauncher):
    """The profile's whole array as a launch would submit it, held: it never starts."""

    log_pattern = "%A_%a.log"
    what = "held"

    def _shape(self) -> None:
        self.parameters["map_count"] = self.submission.slots

    def _parameters(self) -> dict[str, Any]:
        parameters = super()._parameters()
        further = {**parameters["additional_parameters"], "requeue": True, "hold": True}
        further.pop("no_requeue", None)
        return {**parameters, "additional_parameters": further}

    def worker_command(self) -> str:
        return "true"


class MeetingLauncher(DrillLauncher):
    """One task on each of several nodes at the same time."""

    what = "meeting"

    def __init__(self, place: Place, cluster: ClusterConfig, code: str, nodes: int, patience_s: float) -> None:
        self._nodes, self._patience_s = nodes, patience_s
        super().__init__(place, cluster, code)

    def _parameters(self) -> dict[str, Any]:
        return super()._parameters() | {"nodes": self._nodes}

    def worker_command(self) -> str:
        """Where it fails on one node, it goes on on the others: their reports are wanted."""
        srun = shlex.join(
            ["srun", "--unbuffered", "--kill-on-bad-exit=0", *container.srun_arguments(self.cluster, self.run.path)]
        )
        words = f"--count {self._nodes} --patience {self._patience_s:g}"
        return f"{srun} {self.start('hpc.drilling.witness')} {self.directory} {words}"


class LivesLauncher(DrillLauncher):
    """An array of one element, which requeues itself as slots do."""

    log_pattern = "%A_%a.log"
    element = Launcher.element
    what = "lives"

    def __init__(self, place: Place, cluster: ClusterConfig, code: str, drain_s: float) -> None:
        self._drain_s = drain_s
        super().__init__(place, cluster, code)

    def _shape(self) -> None:
        self.parameters["map_count"] = 1

    def _parameters(self) -> dict[str, Any]:
        return Launcher._parameters(self)

    def _tail(self) -> list[str]:
        return Launcher._tail(self)

    def worker_command(self) -> str:
        return self.on_the_node("hpc.drilling.life", f"--drain {self._drain_s:g}")


def held(session: Session, slots: int) -> Launcher:
    """The profile's array with so many slots, which never starts."""
    profile = own(session.config.cluster, session.place)
    return HeldArray(
        session.place, dataclasses.replace(profile, parallel=session.config.cluster.parallel), session.code, slots
    )


def meeting(session: Session) -> Launcher:
    """The job of the meeting, see hpc.drilling.gathering."""
    profile = own(session.config.cluster, session.place, time=session.limit, signal_delay_s=10)
    return MeetingLauncher(session.place, profile, session.code, session.nodes, session.patience_s)


def lives(session: Session) -> Launcher:
    """The job that is signalled, requeued and cancelled, see hpc.drilling.lives."""
    profile = own(session.config.cluster, session.place, time=str(LIMIT_MIN), signal_delay_s=WARNED_S)
    return LivesLauncher(session.place, profile, session.code, session.drain_s)


def small(session: Session) -> ClusterConfig:
    """The profile of the small run."""
    cluster = session.config.cluster
    changes: dict[str, Any] = {"slots": session.nodes, "engines_per_node": min(cluster.engines_per_node, 2)}
    if cluster.kind == "slurm":
        changes |= {"time": session.limit, "signal_delay_s": 30}
    return own(cluster, session.place, **changes)


def planned(session: Session) -> list[tuple[str, Launcher]]:
    """What a drill submits, with what it is for."""
    nodes = f"{session.nodes} {'node' if session.nodes == 1 else 'nodes'}"
    run = f"a small run with {session.nodes} slots, which is harmed: hpc.launch {session.place.path}/work.yaml"
    submission = dataclasses.replace(_submission(session.code, session.nodes), uuid="0" * 12)
    return [
        ("the profile's array, held, and cancelled at once", held(session, session.config.cluster.slots)),
        (f"a meeting of {nodes}", meeting(session)),
        ("an element that is signalled, requeued and cancelled", lives(session)),
        (run, Launcher(Run(session.place.path / session.place.name), submission, small(session))),
    ]


def _submission(code: str, slots: int) -> Submission:
    """A submission for a launcher, which is never saved."""
    return Submission(
        uuid.uuid4().hex[:12], 0.0, plan="", identity="", column="", code=code, slots=slots, config={}, source=""
    )
