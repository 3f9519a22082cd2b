"""A shared run directory executes nothing that others can write, opens as few doors as configured, and prints
nothing raw.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hpc import snapshot, status
from hpc.errors import Exit, UserError
from tests.test_breakers import ROOT, Workbench, lines


def _snapshot(bench: Workbench) -> Path:
    (found,) = [p for p in bench.run.code.iterdir() if not p.name.startswith(".")]
    return found


def _worker_from(code: Path, bench: Workbench) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{code}:{ROOT}"}
    command = [sys.executable, "-P", "-m", *bench.worker(0)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_changed_or_open_code_is_not_run(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": lines(3)})
    bench.record()
    code = _snapshot(bench)
    assert not any(p.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH) for p in [code, *code.rglob("*")])
    victim = code / "hpc" / "journal.py"
    victim.chmod(0o666)
    refused = _worker_from(code, bench)
    assert refused.returncode == Exit.USAGE and "others than its owner may write" in refused.stderr
    victim.write_text(victim.read_text() + "\n# changed\n")
    victim.chmod(0o444)
    refused = _worker_from(code, bench)
    assert refused.returncode == Exit.USAGE and "was changed after it was taken" in refused.stderr
    with pytest.raises(UserError, match="was changed"):
        snapshot.take(bench.run.code)


def test_anothers_snapshot_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = snapshot.take(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    second = snapshot.take(tmp_path)
    assert second == f"{first}-12345" and (tmp_path / second).is_dir()


def test_modes_are_as_configured(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": lines(3)}, umask="007")
    assert bench.launch() == Exit.COMPLETE
    modes = {
        p: p.stat().st_mode for p in bench.run.path.rglob("*") if "code" not in p.relative_to(bench.run.path).parts
    }
    assert not [p for p, mode in modes.items() if mode & stat.S_IRWXO], "closed to the world"
    assert all(mode & stat.S_IWGRP for p, mode in modes.items() if p.is_dir()), "open to the group"
    assert bench.launch() == Exit.COMPLETE, "what the first workers left in the snapshot does not bar the next"


def test_no_text_of_others_reaches_the_terminal_raw(tmp_path: Path) -> None:
    """Keys and reasons come from the data: escape sequences and markup in them are shown, not obeyed."""
    name = "red\x1b[31m[bold]"
    bench = Workbench(tmp_path, {name: ["unreadable"], "b": lines(2)}, map={"attempts": 1, "breaker": 0})
    launched = bench.command("hpc.launch", str(bench.config))
    for said in (launched.stdout, bench.command("hpc.status", str(bench.run.path)).stdout):
        assert "\x1b[31m" not in said and "unreadable" in said
    assert status.clean("a\x1b[2Jb\x07\u202e") == "a\\x1b[2Jb\\x07\\x202e"


def test_nothing_is_unpickled_or_evaluated() -> None:
    for package in ("hpc", "recap"):
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            for word in ("import pickle", "pickle.load", "cloudpickle", 'eval("', "shell=True", "os.system"):
                assert word not in text, f"{file}: {word}"


def test_preflight_of_the_launch_is_said(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, {"a": lines(1)}, runs="s3://bucket/runs")
    refused = bench.command("hpc.launch", str(bench.config))
    assert refused.returncode == Exit.USAGE and "is an object store" in refused.stderr
