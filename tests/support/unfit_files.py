"""File systems that are unfit, for the processes that get this environment (unfit_files.c, preloaded)."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@functools.cache
def _library() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        assert os.environ.get("CI") != "true", "a C compiler cannot be had"
        pytest.skip("a C compiler cannot be had")
    folder = tempfile.mkdtemp(prefix="unfit-files-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = Path(folder) / "unfit_files.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, source, "-ldl", "-lpthread"], check=True, timeout=240)
    return str(built)


def environment(fault: str, below: Path) -> dict[str, str]:
    """What has the fault below a folder."""
    return {"LD_PRELOAD": _library(), "UNFIT": fault, "UNFIT_BELOW": str(below)}
