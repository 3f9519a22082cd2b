"""Workers inside a container: what that adds to srun's arguments and to the worker's command line.

    cluster:
      container: {runtime: apptainer, image: /images/recap.sif, mounts: [/datasets, /models]}

The batch script stays on the host, where `scontrol requeue` is; the container needs this project's dependencies, not
Slurm. The run directory is always mounted, at the same path. The environment passes through: do not add --cleanenv.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc.base.errors import UserError
from hpc.config import ClusterConfig, ContainerConfig


def srun_arguments(cluster: ClusterConfig, run: Path) -> list[str]:
    """Arguments of srun: those of the config (`srun_args`), and pyxis' where pyxis starts the container."""
    container = cluster.container
    if container is None or container.runtime != "pyxis":
        return list(cluster.srun_args)
    mounts = ",".join(_mounts(container, run))
    return [f"--container-image={container.image}", f"--container-mounts={mounts}", *container.args, *cluster.srun_args]


def python(cluster: ClusterConfig, run: Path) -> str:
    """The words of a shell command that start a worker's python: this one, `cluster.python`, or one in a container."""
    container = cluster.container
    if container is None:
        return shlex.quote(cluster.python or sys.executable)
    inside = shlex.quote(cluster.python or "python3")
    if container.runtime == "pyxis":
        return inside
    binds = [word for mount in _mounts(container, run) for word in ("--bind", mount)]
    gpus = ["--nv"] if cluster.gpus_per_node else []
    return f"{shlex.join(['apptainer', 'exec', *gpus, *binds, *container.args, container.image])} {inside}"


def command(cluster: ClusterConfig, run: Path, argv: Sequence[str]) -> list[str]:
    """A program with its arguments as it is started on a node. `python` stands for a worker's python; with `-m MODULE`
    it takes MODULE from PYTHONPATH, and not from the current directory, which may have changed since.
    """
    *around, interpreter = shlex.split(python(cluster, run))
    if cluster.container is not None and cluster.container.runtime == "pyxis":
        around = ["srun", *srun_arguments(cluster, run)]
    program, *arguments = argv
    if program == "python":
        return [*around, interpreter, *(["-P"] if arguments[:1] == ["-m"] else []), *arguments]
    return [*around, program, *arguments]


def _mounts(container: ContainerConfig, run: Path) -> list[str]:
    """The run directory at its own path; `/data` as /data; `/scratch/data:/data:ro` as it says."""
    if any(sign in str(run) for sign in ":,"):
        raise UserError(f"config: `runs`: {run} has ':' or ',' in it, which no container's mount can. Choose another.")
    return [mount if ":" in mount else f"{mount}:{mount}" for mount in [str(run), *container.mounts]]
