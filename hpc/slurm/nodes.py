"""Whether a partition has nodes as large as a job asks for: a job that asks for more waits for ever."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from hpc.config import ClusterConfig
from hpc.slurm import commands as slurm


@dataclass(frozen=True)
class Node:
    """What a node has, by the partition's configuration; whether it is up does not matter."""

    cpus: int
    memory_mb: int
    gpus: int


def too_large(cluster: ClusterConfig) -> str:
    """A warning where a job asks for more than any node has, with the largest values that would do. "" where nodes are
    large enough, or where sinfo does not say. CPUs, GPUs and memory are looked at one by one.
    """
    partition = cluster.partition or os.environ.get("SBATCH_PARTITION", "")
    nodes = _nodes(partition)
    gpus = 0 if cluster.gres else cluster.gpus_per_node  # what a gres asks for is written in the site's own names
    asked = {
        "CPUs": (cluster.cpus_per_node or 0, max((node.cpus for node in nodes), default=0), "cluster.cpus_per_node"),
        "GPUs": (gpus, max((node.gpus for node in nodes), default=0), "cluster.gpus_per_node"),
        "GB of memory": (
            cluster.mem_gb or 0,
            max((node.memory_mb >> 10 for node in nodes), default=0),
            "cluster.mem_gb",
        ),
    }
    said = [
        f"{key}={most:g} ({wanted:g} {what} asked for)" for what, (wanted, most, key) in asked.items() if wanted > most
    ]
    if not nodes or not said:
        return ""
    where = f"partition {partition}" if partition else "the default partition"
    return f"no node of {where} is so large, and the job would wait for ever. At most: {', '.join(said)}"


def unknown_partition(cluster: ClusterConfig) -> str:
    """A warning where sinfo knows none of the partitions asked for, with those that it knows. "" where it does not
    answer, or no partition is asked for.
    """
    asked = cluster.partition or os.environ.get("SBATCH_PARTITION", "")
    try:
        known = sorted(set(slurm.run(["sinfo", "-h", "-a", "-o", "%R"], timeout=20).stdout.split())) if asked else []
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    if not known or set(asked.split(",")) & set(known):
        return ""
    return f"no partition is called {asked}, and sbatch will refuse the job. cluster.partition: {', '.join(known)}"


def _nodes(partition: str) -> list[Node]:
    try:
        done = slurm.run(["sinfo", "-h", "-a", "-N", "-o", "%P|%c|%m|%G"], timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return list(_parsed(done.stdout, set(partition.split(",")) - {""}))


def _parsed(text: str, partitions: set[str]) -> Iterator[Node]:
    """The nodes of these partitions; without any, of the default one, whose name sinfo shows with a star."""
    for line in text.splitlines():
        name, _, rest = line.strip().partition("|")
        if name.rstrip("*") not in partitions if partitions else not name.endswith("*"):
            continue
        if match := re.fullmatch(r"(\d+)\+?\|(\d+)\+?\|(.*)", rest):
            gpus = re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", match[3])
            yield Node(int(match[1]), int(match[2]), sum(map(int, gpus)))
