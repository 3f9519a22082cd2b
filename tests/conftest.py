"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.slurm_cluster import Cluster, NoSlurm

_no_slurm: list[str] = []


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real Slurm, shared by all tests. Where it cannot be had its tests are skipped; under CI=true they fail."""
    try:
        cluster = Cluster()
    except NoSlurm as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"Slurm cannot be had: {error}", pytrace=False)
        _no_slurm[:] = str(error).splitlines()[-1:]
        pytest.skip(f"Slurm cannot be had: {_no_slurm[0]}")
    yield cluster
    cluster.down()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _no_slurm:
        terminalreporter.write_line(f"the tests on a real Slurm were skipped: {_no_slurm[0]}", yellow=True)
