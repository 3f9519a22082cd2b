"""The keys that every config has, beside its operator's or trainer's own: dataclasses, with the help of each key."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any

from hpc.base.fields import execution, semantic


@dataclass
class ContainerConfig:
    """Workers inside a container, see hpc.slurm.container."""

    runtime: str = execution("apptainer", "apptainer | pyxis (srun's --container-image, with enroot)")
    image: str = execution("", "the image: a .sif, or what pyxis takes, e.g. nvcr.io#nvidia/pytorch:25.10-py3")
    mounts: list[str] = execution([], "paths to mount beside the run directory: /data, or /scratch/data:/data")
    args: list[str] = execution([], "further arguments of `apptainer exec`, or pyxis' own arguments of srun")


@dataclass
class ClusterConfig:
    """Where and how jobs run. Nothing here changes what is written."""

    kind: str = execution("local", "local | slurm | auto (slurm where sbatch is on PATH, else local)")
    slots: int = execution(1, "node slots: elements of the job array (slurm) or processes of this machine (local)")
    parallel: int | None = execution(None, "slots that may run at the same time (slurm; default: all)")
    gpus_per_node: int = execution(0, "GPUs a node; one engine process each. 0: engines run on the CPU")
    gpus_per_engine: int = execution(
        1, "GPUs that an engine has, of gpus_per_node (map jobs: vLLM and servers, which split a model over them)"
    )
    engines_per_node: int = execution(1, "engine processes a node where gpus_per_node is 0")
    device: str | None = execution(None, "cpu | cuda (default: cuda where gpus_per_node is set)")
    cpus_per_node: int | None = execution(None, "CPUs a slot asks for (slurm)")
    mem_gb: float | None = execution(None, "memory a slot asks for, GB (slurm)")
    time: str = execution("24:00:00", "time limit of one life of a slot, as Slurm writes it; slots are requeued")
    signal_delay_s: int = execution(300, "seconds before the time limit at which Slurm sends USR2 (drain)")
    partition: str | None = execution(None, "Slurm partition")
    account: str | None = execution(None, "Slurm account")
    qos: str | None = execution(None, "Slurm quality of service")
    constraint: str | None = execution(None, "Slurm node feature")
    exclude: str | None = execution(None, "nodes not to use")
    nodelist: str | None = execution(None, "nodes to use")
    dependency: str | None = execution(None, "Slurm dependency of the submission, e.g. afterok:1234")
    gate: bool = execution(False, "submit a gate job behind the array (slurm): later jobs depend on it, see hpc.gate")
    gres: str | None = execution(None, "generic resources instead of gpus_per_node's, e.g. gpu:h100:8")
    prelude: list[str] = execution([], "shell lines before srun, or @file with such lines. Must not trap TERM")
    python: str | None = execution(None, "python on the nodes (default: this one; inside a container: python3)")
    container: ContainerConfig | None = execution(
        None, "run the workers in a container: {runtime, image, mounts, args}"
    )
    srun_args: list[str] = execution([], "further arguments of srun, e.g. [--container-image=..., --cpu-bind=none]")
    sbatch: dict[str, Any] = execution({}, "further sbatch parameters, e.g. {reservation: weekly}")
    price: float | None = execution(
        None, "cost of a GPU hour (without GPUs: of an engine hour), for status and forecast"
    )
    currency: str = execution("$", "what `price` is in")

    @property
    def workers_per_node(self) -> int:
        """Engine processes (map) or ranks (gang) of a node: one for each `gpus_per_engine` GPUs, without GPUs
        `engines_per_node`.
        """
        return self.gpus_per_node // self.gpus_per_engine or self.engines_per_node

    @property
    def devices_per_node(self) -> int:
        """How many devices of a node have their hours counted: its GPUs, or its engines (ranks) where it has none."""
        return self.gpus_per_node or self.engines_per_node

    def unit(self, worker: str) -> str:
        """What one such device is called: "GPU", or "CPU engine", "CPU rank". worker: "engine" or "rank"."""
        return "GPU" if self.gpus_per_node else f"CPU {worker}"


@dataclass
class MapConfig:
    """How an elastic map job claims, checks and retries shards."""

    lease_s: float = execution(300.0, "seconds without a heartbeat after which a slot's claims may be taken over")
    segment: int = execution(512, "samples that are saved together inside an unfinished shard: a block")
    save_s: float = execution(30.0, "seconds between saves of an unfinished shard's finished blocks: what a kill costs")
    max_failed: float = execution(0.05, "share of a shard's samples that the work may fail before the shard fails")
    allow_failed: int = execution(0, "failed shards with which a gate job still ends well")
    allow_nothing: bool = execution(False, "a run without one ok sample ends well, too: what reads it counts them")
    attempts: int = execution(3, "application failures of a shard before it is marked failed")
    breaker: int = execution(8, "shards of a slot that fail alike, before any succeeds, to pause the run. 0: never")
    compare: bool = execution(True, "pause the run where its rows are no longer like those of its pilot, if it had one")
    min_free_gb: float = execution(1.0, "free space on the run directory's file system under which no slot starts, GB")
    setup_s: float = execution(1800.0, "seconds that an engine may take to load its model")
    hang_s: float = execution(600.0, "seconds without a finished sample after which an engine is killed")
    away_s: float = execution(1800.0, "seconds that a service may be away (a caption server) before a slot is requeued")
    drain_s: float = execution(60.0, "seconds that engines get to finish what is in flight when told to stop")
    idle_exit_s: float = execution(
        600.0, "seconds without a claimable shard after which a slot ends (others still work)"
    )


@dataclass
class GangConfig:
    """How many nodes a gang job takes, and when one of its ranks counts as hung."""

    nodes: int = execution(1, "nodes; each has one rank per GPU, or cluster.engines_per_node CPU ranks")
    setup_s: float = execution(3600.0, "seconds that a rank may take until its first step")
    hang_s: float = execution(1800.0, "seconds without a step after which the ranks print their stacks and end")


@dataclass
class RunConfig:
    """The keys of every config, beside its operator's or trainer's own."""

    name: str = execution(MISSING, "name of the run: its directory is <runs>/<name>")
    operator: str = semantic("", "dotted path of the operator class (a map job), installed or on PYTHONPATH")
    trainer: str = semantic("", "dotted path of the trainer class (a gang job), installed or on PYTHONPATH")
    umask: str | None = execution(
        None, "umask of all files of the run, octal, e.g. '002' for a group's run (default: ours)"
    )
    output: str | None = execution(None, "object store for published files, e.g. s3://bucket/prefix (default: the run)")
    sweep: dict[str, Any] = execution({}, "several trainings of one kind (gang): arm's name -> changes to this config")
    pilot: int = execution(0, "map jobs: make so many samples first, blocks from all over the plan. 0: all of it")
    runs: str = execution("runs", "directory that holds run directories; must be POSIX and shared by all nodes")
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata={"execution": True})
    map: MapConfig = field(default_factory=MapConfig, metadata={"execution": True})
    gang: GangConfig = field(default_factory=GangConfig, metadata={"execution": True})
