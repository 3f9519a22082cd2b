"""Fixtures that several test modules share, and how the tests are dealt to processes."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.slurm_cluster import Cluster, NoSlurm

# Slots find the operators and trainers of these tests as they find a user's own: installed, or by PYTHONPATH.
ROOT = str(Path(__file__).resolve().parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))

# Test processes, and the many that they start, read compiled code where the environment says not to write it, too:
# compiling the tests alone takes eight seconds in each.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import recap  # noqa: E402, F401 - before transformers: see recap.torchvision_shim

# Hypothesis's own clocks say how busy the machine is, not what the code does.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

NO_SLURM = "Slurm cannot be had: "


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real Slurm, shared by all tests. Where it cannot be had its tests are skipped; under CI=true they fail."""
    try:
        cluster = Cluster()
    except NoSlurm as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{NO_SLURM}{error}", pytrace=False)
        pytest.skip(NO_SLURM + str(error).splitlines()[-1])
    yield cluster
    cluster.down()


@pytest.fixture(autouse=True)
def _no_test_dies_of_a_closed_socket() -> Iterator[None]:
    """Code under test must not give SIGPIPE its default back: a later test of this process would end all of it."""
    yield
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN


# --- pytest-xdist -----------------------------------------------------------------------------


# Files that one process takes together, because they share what is slow to start: a Slurm; a server that has imported
# torch, transformers and diffusers and forks the ranks of trainings.
SHARED = {
    "slurm": re.compile(r"^from tests.support.slurm_cluster import .*\bCluster\b", re.M),
    "ranks": re.compile(r"^from tests.train.ranks import .*\blaunch\b", re.M),
}
LONG = (
    "map/test_engine_protocol", "commands/test_launch", "map/test_crash_matrix", "engine/test_native",
    "gang/test_gang", "gang/test_sweep", "train/test_step", "data/test_joined", "generate/test_systems",
)  # fmt: skip


@functools.cache
def _shared(file: Path) -> str | None:
    text = file.read_text()
    return next((name for name, uses in SHARED.items() if uses.search(text)), None)


def _turn(item: pytest.Item) -> tuple[int, int]:
    """What takes longest comes first, so that no process is left alone with it at the end."""
    groups, name = list(SHARED), str(item.path.with_suffix(""))
    shared = _shared(item.path)
    long = next((n for n, end in enumerate(LONG) if name.endswith(end)), len(LONG))
    return (groups.index(shared), 0) if shared else (len(groups), long)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A process takes whole files, for their fixtures, and those of `SHARED` together. (xdist's own groups, loadgroup,
    are silently not applied with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return _shared(config.rootpath / file) or file

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    reasons = [found[2] for found in skipped if isinstance(found, tuple) and NO_SLURM in found[2]]
    if reasons:
        terminalreporter.write_line(f"the tests on a real Slurm were skipped: {reasons[0]}", yellow=True)
