"""Every command can be found: in the lists of `python -m hpc` and its like, in a page's prose, by --help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc.__main__ import HIDDEN
from hpc.base.command_list import commands

ROOT = Path(__file__).parents[2]
PACKAGES = ("hpc", "recap", "benchmarks")
LISTED = [name for package in PACKAGES for name, _ in commands(ROOT / package) if name not in HIDDEN]
# The lists themselves, and processes that only we start.
STARTED_BY_US = {
    "hpc.__main__",
    "recap.__main__",
    "benchmarks.__main__",
    "hpc.base.bootstrap",
    "hpc.base.command_list",
    "hpc.map.engine",
    "hpc.map.local",
    "recap.engine.decode_worker",
    "recap.engine.tuning.measure",
    "recap.train.groups",
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_every_module_that_can_be_run_is_listed() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    run = {name_of(file) for file in files if '\nif __name__ == "__main__":' in file.read_text()}
    assert run - set(LISTED) - set(HIDDEN) - STARTED_BY_US == set()
    assert not set(LISTED) & STARTED_BY_US


@pytest.mark.parametrize("package", PACKAGES)
def test_a_list_names_its_commands_and_the_other_lists(package: str) -> None:
    said = subprocess.run([sys.executable, "-m", package], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name for name in LISTED if name.startswith(f"{package}.")} <= set(said.split())
    assert all(f"python -m {other}" in said for other in PACKAGES if other != package)
    assert "docs/index.md" in said


def test_every_command_stands_in_a_page() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    prose = "\n".join(page.read_text() for page in pages if page.name not in ("commands.md", "keys.md"))
    missing = [name for name in LISTED if not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.]*\w)", prose)]
    assert not missing


@pytest.mark.slow  # two seconds each: most import torch
@pytest.mark.parametrize("name", LISTED)
def test_a_command_has_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {name}" in done.stdout
