"""ruff and mypy, as part of the tests: one command says whether the project is in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _clean(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    _clean("ruff", "check", ".")


@pytest.mark.slow  # twenty seconds that say nothing of this machine; .ci/run has it
def test_mypy() -> None:
    _clean("mypy")
