"""Lines of the verdict that need no job to run: whether Slurm is here, and whether it takes jobs of this profile."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess

from hpc.base.errors import Unanswered, UserError
from hpc.config import ClusterConfig
from hpc.config.cluster_checks import slurm_seconds
from hpc.drilling import jobs
from hpc.drilling.board import LINES
from hpc.drilling.place import end_jobs
from hpc.drilling.session import Session
from hpc.slurm import commands as slurm
from hpc.slurm import nodes, queue
from hpc.slurm.submission import LIMIT

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
OF_SLURM = ("slurm", "request", "array", "time", "start", "nodes", "signals", "requeue", "cancel", "preemption")
NO_ANSWER = "Slurm's controller does not answer"
_TIMEOUT_S = 30.0


def answers(session: Session) -> bool:
    """Judge the line `slurm`; whether Slurm answers."""
    missing = [command for command in COMMANDS if not shutil.which(command)]
    to_set = "run the drill on a login node, with Slurm's commands on PATH (a module?), or say --cluster local"
    if missing:
        return session.board.judge("slurm", f"not on PATH: {', '.join(missing)}", "", to_set)
    said = ask("scontrol", "ping")
    version = (ask("sbatch", "--version") or "").strip()
    if said is None or "UP" not in said:
        session.board.not_tried(["slurm"], NO_ANSWER, again=True)
        return False
    return session.board.judge("slurm", "", version, to_set)


def takes_the_profile(session: Session) -> bool:
    """Judge the lines `request`, `array` and `time`; whether Slurm takes jobs of this profile."""
    board, cluster, place = session.board, session.config.cluster, session.place
    slots, said = cluster.slots, ""
    place.expect_jobs()
    while True:
        try:
            jobs.held(session, slots).submit_script()
            break
        except Unanswered:
            board.not_tried(["request", "array"], NO_ANSWER, again=True)
            return False
        except UserError as error:
            refused = str(error).removeprefix("launch: ")
            if not (LIMIT.search(refused) and slots > 1):
                board.judge("request", refused, "", _what_to_ask(refused))
                return False
            slots, said = slots // 2, said or refused
        finally:
            end_jobs(place.name)
    size = nodes.too_large(cluster)
    board.judge("request", size, "taken, and cancelled", "the keys that it names, or another cluster.partition")
    most = queue.max_array_size()
    known = f"; MaxArraySize is {most:,}" if most else ""
    to_set = f"cluster.slots={min(slots, most or slots)} (a launch falls back to that by itself)"
    board.judge("array", said, f"{cluster.slots:,} elements were taken{known}", to_set)
    _time(session)
    return not size


def preemption(session: Session) -> None:
    """Add the line `preemption`, as not tried: no job is preempted for a drill."""
    said = ask("scontrol", "show", "config") or ""
    found = [match[0] for match in re.finditer(r"^(PreemptMode|PreemptType|KillWait)\s*=.*$", said, re.MULTILINE)]
    facts = "; ".join(re.sub(r"\s+", " ", line).strip() for line in found)
    session.board.not_tried(["preemption"], f"no job is preempted for a drill; the site says {facts or 'nothing'}")


def slurm_not_tried(session: Session, why: str, again: bool = False) -> None:
    """Add all lines that need Slurm, as not tried."""
    session.board.not_tried([name for name in LINES if name in OF_SLURM], why, again)


def ask(*command: str) -> str | None:
    """What a command of Slurm's prints, None where it fails."""
    try:
        done = slurm.run(command, _TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _what_to_ask(refused: str) -> str:
    """The config keys that an error text of sbatch is about."""
    keys = {
        "partition": "cluster.partition (sinfo -s lists them)",
        "account": "cluster.account",
        "qos": "cluster.qos",
        "time limit": "cluster.time",
        "node configuration": "cluster.gpus_per_node, cluster.cpus_per_node, cluster.mem_gb, cluster.constraint",
        "feature": "cluster.constraint",
        "gres": "cluster.gres, cluster.gpus_per_node",
        "memory": "cluster.mem_gb",
        "number of nodes": "cluster.nodelist (a slot is one node; cluster.exclude names those not to use)",
        "node list": "cluster.nodelist, cluster.exclude",
        "reservation": "cluster.sbatch",
    }
    found = [key for word, key in keys.items() if word in refused.lower()]
    return "; ".join(found) or "cluster.sbatch, or what the site's support says to these words"


def _time(session: Session) -> None:
    cluster = session.config.cluster
    limits = _limits(cluster)
    if not limits:
        session.board.not_tried(["time"], "sinfo does not tell the partition's limit")
        return
    most = max(limits, key=_seconds)
    session.granted_s = _seconds(most)
    short = slurm_seconds(cluster.time) > session.granted_s
    problem = f"{cluster.time} is asked for, the partition grants {most}: such a job waits for ever" if short else ""
    session.board.judge("time", problem, f"{cluster.time} of {most}", f'cluster.time: "{most}"')


def _seconds(limit: str) -> float:
    return math.inf if limit == "infinite" else float(slurm_seconds(limit))


def _limits(cluster: ClusterConfig) -> list[str]:
    """The time limits of the profile's partitions; without any, of the default one, which sinfo shows with a star."""
    wanted = set((cluster.partition or os.environ.get("SBATCH_PARTITION", "")).split(",")) - {""}
    rows = [line.strip().split("|") for line in (ask("sinfo", "-h", "-a", "-o", "%P|%l") or "").splitlines()]
    mine = [row for row in rows if (row[0].rstrip("*") in wanted if wanted else row[0].endswith("*"))]
    found = [row[1] for row in mine if len(row) == 2]
    return [text for text in found if text == "infinite" or re.fullmatch(r"[\d:-]+", text)]
