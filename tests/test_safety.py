"""A shared run directory executes nothing that others can write, opens as few doors as configured, and prints
nothing raw.
"""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import status
from hpc.base import access, bootstrap, snapshot
from hpc.base.errors import Exit, UserError
from tests.map.test_breakers import ROOT, Workbench, lines


def _snapshot(bench: Workbench) -> Path:
    (found,) = [p for p in bench.run.code.iterdir() if not p.name.startswith(".")]
    return found


def _start(code: Path, bench: Workbench, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a batch script starts a worker: with the text of the bootstrap, not with its file."""
    text = Path(bootstrap.__file__).read_text()
    command = [sys.executable, "-I", "-c", text, str(code), *bench.worker(0)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)


EVIL = "import os\nos.mkdir({mark!r})\n"


def _edit(code: Path, mark: str) -> None:
    for name in ("map/agent", "base/snapshot", "base/bootstrap", "worker", "__init__"):
        (code / "hpc" / f"{name}.py").unlink()
        (code / "hpc" / f"{name}.py").write_text(EVIL.format(mark=mark))


def _replace(code: Path, mark: str) -> None:
    """What a group member may do: rename the folder, put another of the same name in its place."""
    code.parent.rename(code.parent.with_name("old"))
    shutil.copytree(code.parent.with_name("old"), code.parent)
    _edit(code, mark)


def _add_package(code: Path, mark: str) -> None:
    (code / "pyarrow").mkdir()
    (code / "pyarrow" / "__init__.py").write_text(EVIL.format(mark=mark))


def _add_module(code: Path, mark: str) -> None:
    (code / "sitecustomize.py").write_text(EVIL.format(mark=mark))


def _link(code: Path, mark: str) -> None:
    (code / "hpc/base/journal.py").rename(code.parent / "journal.py")
    (code / "hpc/base/journal.py").symlink_to(code.parent / "journal.py")


@pytest.mark.parametrize("change", [_edit, _replace, _add_package, _add_module, _link])
def test_changed_code_is_not_run(tmp_path: Path, change: Callable[[Path, str], None]) -> None:
    """Whatever was changed, added or put in its place, and whoever might check it: nothing of it is imported."""
    bench = Workbench(tmp_path, {"a": lines(3)})
    bench.record()
    code, mark = _snapshot(bench), tmp_path / "owned"
    change(code, str(mark))
    refused = _start(code, bench)
    assert refused.returncode == Exit.USAGE and re.search("was changed|plain file", refused.stderr), refused.stderr
    assert not mark.exists()
    if code.parent.name == "code" and change is not _replace:
        with pytest.raises(UserError, match="launch again"):
            snapshot.take(bench.run.code)


@pytest.mark.slow(ci=True)
def test_what_runs_is_a_copy_of_the_owner_s(tmp_path: Path) -> None:
    """A cache that others have put beside a module is not looked at; the copy is used again, and mended."""
    bench = Workbench(tmp_path, {"a": lines(3)})
    bench.record()
    code, mark, tmp = _snapshot(bench), tmp_path / "owned", tmp_path / "tmp"
    tmp.mkdir()
    (tmp_path / "evil.py").write_text(EVIL.format(mark=str(mark)))
    cache = code / "hpc/map/__pycache__" / f"agent.{sys.implementation.cache_tag}.pyc"
    cache.parent.mkdir()
    py_compile.compile(
        str(tmp_path / "evil.py"), cfile=str(cache), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    done = _start(code, bench, TMPDIR=str(tmp))
    assert done.returncode == Exit.COMPLETE and not mark.exists(), done.stderr
    (copy,) = tmp.glob("hpc-code-*/*")
    assert copy.name == code.name and stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    (copy / "hpc/map/agent.py").write_text(EVIL.format(mark=str(mark)))
    (copy / "hpc" / "worker.py").unlink()
    assert _start(code, bench, TMPDIR=str(tmp)).returncode == Exit.COMPLETE and not mark.exists()


def test_who_may_write_above_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "team" / "runs" / "r"
    run.mkdir(parents=True)
    team = tmp_path / "team"
    assert access.check(run) == []
    run.chmod(0o2775)
    assert "data, settings and control files of this run, not its code" in access.check(run)[0]
    for mode, said in ((0o1777, ""), (0o777, "everybody may write"), (0o2775, "")):
        team.chmod(mode)
        if said:
            with pytest.raises(UserError, match=said):
                access.check(run)
            bench = Workbench(tmp_path, {"a": lines(1)}, runs=str(team / "runs"))
            refused = bench.command("hpc.launch", str(bench.config))
            assert refused.returncode == Exit.USAGE and said in refused.stderr
        else:
            assert len(access.check(run)) == 1, "sticky, or the user's own"
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if team.stat().st_uid:  # else it is root's, who may replace it anyway
        with pytest.raises(UserError, match="and so replace"):
            access.check(run)
    run.chmod(0o777)
    with pytest.raises(UserError, match="everybody may write"):
        access.check(run)


def test_anothers_snapshot_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = snapshot.take(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    second = snapshot.take(tmp_path)
    assert second == f"{first}-12345" and (tmp_path / second).is_dir()


@pytest.mark.slow
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
    assert status.printable("a\x1b[2Jb\x07\u202e") == "a\\x1b[2Jb\\x07\\x202e"


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
