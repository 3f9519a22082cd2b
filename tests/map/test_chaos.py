"""Some of tests/support/chaos.py: random faults on a real Slurm, then proof that nothing was lost or done twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.chaos import Chaos
from tests.support.slurm_cluster import Cluster, NoSlurm


@pytest.mark.slow
@pytest.mark.slurm
def test_some_chaos(tmp_path: Path) -> None:
    try:
        slurm = Cluster()  # its own: nodes and the controller are killed
    except NoSlurm as error:
        assert os.environ.get("CI") != "true", f"Slurm cannot be had: {error}"
        pytest.skip(f"Slurm cannot be had: {error}")
    try:
        chaos = Chaos(slurm, tmp_path, seed=3)
        chaos.run(minutes=0.6)
        assert not chaos.never()
        chaos.settle()
        chaos.check()
    finally:
        slurm.down()
