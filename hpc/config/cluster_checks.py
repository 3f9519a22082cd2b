"""Mistakes in a cluster's settings: what cannot work, and what a batch script could not hold as it was meant."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.base.errors import UserError

if TYPE_CHECKING:
    from hpc.config.schema import ClusterConfig

# Options of sbatch that the launcher sets itself: it later finds its jobs and their logs by them.
_SET_BY_LAUNCHER = ("array", "output", "error", "chdir", "comment", "clusters", "wait", "wrap", "parsable", "signal")


def mistakes(cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it). Replaces each `@file` in `cluster.prelude` by the lines of that file."""
    yield from _control_characters(cluster)
    yield from _numbers(cluster)
    if cluster.device not in (None, "cpu", "cuda"):
        yield "device", f"{cluster.device!r} is unknown. Write cpu or cuda."
    if cluster.kind not in ("local", "slurm"):
        yield "kind", f"{cluster.kind!r} is unknown. Write local or slurm."
    cluster.prelude = [line for entry in cluster.prelude for line in _prelude(entry)]
    for line in cluster.prelude:
        if re.search(r"\btrap\b.*\b(SIG)?(TERM|USR2|0|EXIT)\b", line):
            yield "prelude", f"{line!r} traps a signal that workers need to drain. Remove the trap."
    if cluster.container is not None and cluster.container.runtime not in ("apptainer", "pyxis"):
        yield "container.runtime", f"{cluster.container.runtime!r} is unknown. Write apptainer or pyxis."
    if cluster.container is not None and not cluster.container.image:
        yield "container.image", "missing. Name the image."
    for key in cluster.sbatch:
        if not re.fullmatch(r"[A-Za-z][\w-]*", str(key)):
            yield f"sbatch.{key}", "is no option of sbatch. Write its long name, as in {reservation: weekly}."
        if str(key).replace("_", "-") in _SET_BY_LAUNCHER:
            yield f"sbatch.{key}", "is the launcher's own to say: it finds its jobs and their logs by it. Remove it."


def _numbers(cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(r"\d+|(\d+-)?\d{1,3}:\d{2}(:\d{2})?|\d+-\d{1,2}", cluster.time):
        yield "time", f'"{cluster.time}" is not a Slurm time. Write 24:00:00 or 1-00:00:00.'
    elif cluster.kind == "slurm" and slurm_seconds(cluster.time) <= cluster.signal_delay_s:
        yield (
            "time",
            f'"{cluster.time}" is over before any work: the drain starts {cluster.signal_delay_s} s before its '
            "end (cluster.signal_delay_s). Ask for more time.",
        )
    for key in ("slots", "engines_per_node", "gpus_per_engine"):
        if getattr(cluster, key) < 1:
            yield key, f"{getattr(cluster, key)} is less than 1"
    if cluster.gpus_per_node < 0:
        yield "gpus_per_node", f"{cluster.gpus_per_node} is less than 0"
    gpus, each = cluster.gpus_per_node, cluster.gpus_per_engine
    if each > 1 and (gpus < each or gpus % each):
        yield "gpus_per_engine", f"{gpus} GPUs a node (cluster.gpus_per_node) cannot be dealt out {each} at a time"


def _control_characters(cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    """Settings that hold a line break: each is written into one line of the batch script, and must not begin another.
    (A prelude consists of shell lines anyway.)
    """
    for key, text in _texts({**dataclasses.asdict(cluster), "prelude": []}, ""):
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]", text):
            yield key, f"{text!r} has a line break or a control character in it. Write it in one line."


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All text in a tree of settings, keys of mappings included, with where it is."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}.{name!r}".lstrip("."), str(name)
            yield from _texts(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
    elif isinstance(value, str):
        yield key, value


def _prelude(entry: str) -> list[str]:
    """The lines of a prelude's entry: itself, or those of `@file` without comments (the run keeps lines, not files)."""
    if not entry.startswith("@"):
        return [entry]
    try:
        lines = Path(entry[1:]).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"config: `cluster.prelude`: {entry}: cannot be read ({error.strerror}).") from error
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def slurm_seconds(time: str) -> int:
    """Seconds of a Slurm time: minutes, minutes:seconds, h:m:s, days-hours, days-h:m, days-h:m:s.

    >>> [slurm_seconds(t) for t in ("10", "1:30", "24:00:00", "1-0", "1-12:00")]
    [600, 90, 86400, 86400, 129600]
    """
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = [0, *parts][-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
