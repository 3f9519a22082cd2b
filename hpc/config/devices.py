"""Which GPUs each engine of a node gets."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hpc.config.schema import ClusterConfig


def devices(cluster: ClusterConfig) -> Iterable[dict[str, str]]:
    """One environment per engine: its own GPUs, as Slurm names them (indices, UUIDs, MIG), or none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    ids = [d for d in visible.split(",") if d] or [str(i) for i in range(cluster.gpus_per_node)]
    if not cluster.gpus_per_node:
        return [{"device": "cpu", "CUDA_VISIBLE_DEVICES": ""} for _ in range(cluster.engines_per_node)]
    device = cluster.device or "cuda"
    each = cluster.gpus_per_engine
    whole = min(len(ids), cluster.gpus_per_node) // each
    return [
        {"device": device, "CUDA_VISIBLE_DEVICES": ",".join(ids[at * each : (at + 1) * each])} for at in range(whole)
    ]
