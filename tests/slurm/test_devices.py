"""The GPUs of a node that Slurm gives a slot, dealt out to its engines: on a real Slurm, with four fake GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.slurm_cluster import Cluster, NoSlurm, wait
from tests.support.slurm_job import EchoJob

UUIDS = "GPU-1f0c,GPU-9ae2,GPU-03b7,GPU-77d1"
MIGS = "MIG-6d1/7/0,MIG-6d1/8/0,MIG-b02/7/0,MIG-b02/8/0"


@pytest.fixture(scope="module")
def four() -> Iterator[Cluster]:
    """One node with four GPUs."""
    try:
        cluster = Cluster(nodes=1, gpus=4)
    except NoSlurm as error:
        pytest.skip(f"Slurm cannot be had: {str(error).splitlines()[-1]}")
    yield cluster
    cluster.down()


@pytest.fixture
def make(four: Cluster, tmp_path: Path) -> Iterator[Callable[..., EchoJob]]:
    made: list[EchoJob] = []

    def new(**arguments: Any) -> EchoJob:
        made.append(EchoJob(four, tmp_path, **arguments))
        return made[-1]

    yield new
    for job in made:
        job.cancel()
        job.wait_over()


def given(job: EchoJob) -> set[str]:
    """CUDA_VISIBLE_DEVICES of the engines that run now."""
    found = set()
    for engine in job.processes("hpc.map.engine"):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(engine.environ()["CUDA_VISIBLE_DEVICES"])
    return found


def worked(job: EchoJob, slots: int) -> set[str]:
    """The devices of the engines that finished samples, as heartbeats tell."""
    lives = [facts for slot in range(slots) for facts in job.lives(slot)]
    return {engine["device"] for facts in lives for engine in facts["engines"] if engine["done"]}


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
@pytest.mark.parametrize("names", ["0,1,2,3", UUIDS, MIGS])
def test_four_gpus_are_two_engines_of_two(names: str, make: Callable[..., EchoJob], tmp_path: Path) -> None:
    """cluster.gpus_per_engine=2: each engine sees two of those that Slurm gave, under the names that it gave them. (A
    site's task prolog says UUIDs or MIG devices, as Slurm does where it asks the driver.)
    """
    job = make(shards=24, lines=12, delay_s=0.05)
    prolog = tmp_path / "prolog.sh"
    prolog.write_text(f"#!/bin/sh\necho export CUDA_VISIBLE_DEVICES={names}\n")
    prolog.chmod(0o755)
    asked = [] if names == "0,1,2,3" else [f"srun_args=[--task-prolog={prolog}]"]
    job.launch("slots=1", "gpus_per_node=4", "gpus_per_engine=2", "device=cpu", *asked)
    ids = names.split(",")
    halves = {",".join(ids[:2]), ",".join(ids[2:])}
    seen: set[str] = set()
    wait(lambda: seen.update(given(job)) or seen >= halves, "both engines are there")
    job.wait_over()
    job.check()
    assert seen == halves == worked(job, slots=1)
    assert {event["engines"] for event in job.events("start")} == {4}, "hours count GPUs"


@pytest.mark.slow
@pytest.mark.slurm
def test_slots_that_share_a_node(make: Callable[..., EchoJob]) -> None:
    """Two slots of two GPUs each: the second is given the GPUs 2 and 3, and its engine sees those, not 0 and 1."""
    job = make(shards=24, lines=12, delay_s=0.05)
    job.launch("slots=2", "gpus_per_node=2", "gpus_per_engine=2", "device=cpu", "cpus_per_node=2")
    seen: set[str] = set()
    wait(lambda: seen.update(given(job)) or seen >= {"0,1", "2,3"}, "both slots have their engine")
    job.wait_over()
    job.check()
    assert seen == {"0,1", "2,3"} == worked(job, slots=2)
