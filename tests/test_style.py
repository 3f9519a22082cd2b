"""Lint, format and types, as part of the tests: what CI and pre-commit run is one list."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HOOKS = [
    hook["entry"].split()
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
]


@pytest.mark.parametrize(
    "hook",
    [
        # mypy takes more than a minute and says nothing of this machine; .ci/run has it
        pytest.param(hook, id="-".join(hook[:2]), marks=[pytest.mark.slow] if hook[0].endswith("mypy") else [])
        for hook in HOOKS
    ],
)
def test_the_tree_is_clean(hook: list[str]) -> None:
    command = [sys.executable, "-m", Path(hook[0]).name, *hook[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_hooks() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line.split() for line in lines if line.split() in HOOKS] == HOOKS


def test_types_are_packaged() -> None:
    """PEP 561: type checkers of who installs the packages read their annotations."""
    assert files("hpc").joinpath("py.typed").is_file() and files("recap").joinpath("py.typed").is_file()
