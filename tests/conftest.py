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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For pytest-xdist: the tests on Slurm share one cluster, and come first since they take longest; a file's other
    tests share its fixtures.
    """
    for item in items:
        on_slurm = "slurm" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("slurm" if on_slurm else str(item.path)))
    items.sort(key=lambda item: "slurm" not in getattr(item, "fixturenames", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _no_slurm:
        terminalreporter.write_line(f"the tests on a real Slurm were skipped: {_no_slurm[0]}", yellow=True)
