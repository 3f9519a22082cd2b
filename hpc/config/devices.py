"""Which GPUs each engine of a node gets."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hpc.config.schema import ClusterConfig


def devices(cluster: ClusterConfig) -> Iterable[dict[str, str]]:
    """For each engine of this node its `device` ("cpu", "cuda") and its own CUDA_VISIBLE_DEVICES: GPUs as Slurm names
    them (indices, UUIDs, MIG devices), "" on a CPU. An engine for which not enough GPUs are visible is left out.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = [d for d in visible.split(",") if d] or [str(i) for i in range(cluster.gpus_per_node)]
    if not cluster.gpus_per_node:
        return [{"device": "cpu", "CUDA_VISIBLE_DEVICES": ""} for _ in range(cluster.engines_per_node)]
    device = cluster.device or "cuda"
    each = cluster.gpus_per_engine
    engines = min(len(ids), cluster.gpus_per_node) // each
    return [
        {"device": device, "CUDA_VISIBLE_DEVICES": ",".join(ids[number * each : (number + 1) * each])}
        for number in range(engines)
    ]
