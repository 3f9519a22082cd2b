"""Exports that are killed: what is done is not done again, no file is torn, and the bytes are those of an export that
nothing disturbed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc.base import atomic
from hpc.base.errors import Exit
from hpc.base.lock import hold
from recap import export
from recap.exporting import files
from recap.worlds.tars import write_tar
from tests.publishing.conftest import ROOT, image
from tests.support.jobs import wait_for

KINDS = {
    "parquet": ["--shard-size", "10"], "jsonl": ["--jsonl", "--shard-size", "10"], "webdataset": ["--webdataset"],
    "energon": ["--energon"],
}  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes | str]:
    """Bytes by name; of links, where they lead."""
    return {
        p.relative_to(folder).as_posix(): str(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


def made(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name is, and when it was written: what is done again is another."""
    return {
        p.name: (p.stat().st_ino, p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink() and p.suffix in (".parquet", ".jsonl", ".tar", ".arrow")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_is_not_done_again(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ended after each of its parts, between file and marker; then other rows are asked for, which begins anew."""
    monkeypatch.setattr(files, "_AT_ONCE", 1)
    monkeypatch.setattr(export, "status", lambda run: {})
    out, unfinished = tmp_path / "out", tmp_path / ".out.unfinished"
    arguments = [str(run), str(out), *KINDS[kind]]
    assert export.main(arguments) == Exit.COMPLETE
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    undisturbed = files_of(out)
    shutil.rmtree(out)

    def part_ends(target: Path, data: bytes, **options: Any) -> None:
        if len([p for p in (unfinished / "done").rglob("*.json")]) == allowed and "done" in target.parts:
            raise KeyboardInterrupt
        replace(target, data, **options)

    replace, ended = atomic.replace, 0
    monkeypatch.setattr(atomic, "replace", part_ends)
    for allowed in range(99):
        (unfinished / "out/data").mkdir(parents=True, exist_ok=True) if allowed else None
        if allowed:
            (unfinished / "out/data/.tmp-of-a-killed-one").write_bytes(b"torn")
        before = made(unfinished / "out") if allowed else {}
        kept = dict(list(before.items())[: max(allowed - 1, 0)]) if kind in ("webdataset", "energon") else {}
        try:
            assert export.main(arguments) == Exit.COMPLETE
            break
        except KeyboardInterrupt:
            ended += 1
            assert not out.exists() and kept.items() <= made(unfinished / "out").items()
    assert ended == {"parquet": 6, "jsonl": 6, "webdataset": 2, "energon": 2}[kind]
    assert files_of(out) == undisturbed and [p.name for p in tmp_path.iterdir()] == ["out"]
    assert "goes on where it ended; 1 parts are there" in capsys.readouterr().out

    shutil.rmtree(out)
    allowed = 1
    with pytest.raises(KeyboardInterrupt):
        export.main(arguments)
    monkeypatch.setattr(atomic, "replace", replace)
    assert export.main([*arguments, "--where", "key = 'k01'"]) == Exit.COMPLETE
    assert "goes on" not in capsys.readouterr().out
    assert "1 captions" in (out / "README.md").read_text()
    assert len([p for p in out.rglob("*.tar")]) == {"webdataset": 1, "energon": 2}.get(kind, 0)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "energon"])
def test_a_marker_speaks_for_what_is_on_the_disk(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was forced to the disk, at least: of every file, its bytes, its name and its folders'."""
    monkeypatch.setattr(export, "status", lambda run: {})
    out, synced, checked = tmp_path / ".out.unfinished", dict[int, set[str]](), list[str]()

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        names = os.listdir(descriptor) if stat.S_ISDIR(found.st_mode) else []
        synced[found.st_ino] = {*names}

    def named(source: str | Path, target: str | Path) -> None:
        path = Path(target)
        if "done" in path.parts:
            for made in [p for p in out.rglob("*") if p.suffix in (".tar", ".arrow", ".parquet")]:
                assert made.is_symlink() or made.stat().st_ino in synced, made
                for lower, folder in zip([made, *made.parents], made.relative_to(out).parents, strict=False):
                    assert lower.name in synced[(out / folder).stat().st_ino], (path, lower)
                checked.append(made.name)
            assert Path(source).stat().st_ino in synced, "the marker itself"
        replace(source, target)

    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", named)
    assert export.main([str(run), str(tmp_path / "out"), *KINDS[kind]]) == Exit.COMPLETE
    assert len(checked) >= 2 and {p.stat().st_ino for p in (tmp_path / "out").rglob("*.*")} <= synced.keys() | _linked(
        tmp_path / "out"
    )


def _linked(folder: Path) -> set[int]:
    return {p.stat().st_ino for p in folder.rglob("*") if p.is_symlink()}


def test_one_at_a_time(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    with hold(tmp_path / ".out.unfinished/lock", "export"):
        assert export.main([str(run), str(tmp_path / "out")]) == Exit.USAGE
    assert "another export, process" in capsys.readouterr().err.replace("\n", " ")


SHARDS = 40


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of forty shards."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "in").mkdir()
    for shard in range(SHARDS):
        with open(folder / "in" / f"{shard:02d}.tar", "wb") as file:
            write_tar(file, [(f"k{shard:02d}{n}", {"jpg": image(n + 1), "txt": b"two words"}) for n in range(30)])
    config = folder / "c.yaml"
    config.write_text(
        f"name: r\nruns: {folder}\noperator: tests.support.instant.InstantOperator\ncaptioner: {{model: instant}}\n"
        f"data: {{shards: [{folder}/in]}}\ncluster: {{kind: local}}\nmap: {{lease_s: 3}}\n"
    )
    command = [sys.executable, "-m", "hpc.launch", str(config)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=480)
    yield folder / "r"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_on_all_cores(kind: str, large: Path, tmp_path: Path) -> None:
    out, unfinished = tmp_path / "out", tmp_path / ".out.unfinished"
    command = [sys.executable, "-m", "recap.export", str(large), str(out), *KINDS[kind]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, timeout=600)
    undisturbed = files_of(out)
    shutil.rmtree(out)
    chance, killed = random.Random(kind), list[int]()

    def done() -> dict[str, tuple[int, int]]:
        return {
            p.relative_to(unfinished).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns)
            for p in (unfinished / "done").rglob("*.json")
        }

    for attempt in range(6):
        before = done()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        more = len(before) + chance.choice((0, 1, 2, 5))
        wait_for(lambda more=more, process=process: len(done()) >= more or process.poll() is not None, 600)
        if process.poll() is not None:
            break
        if attempt % 2:  # the process alone: those that it started end with it
            process.kill()
            process.wait()
            wait_for(lambda process=process: not _of_session(process.pid), 60)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        killed.append(len(done()))
        assert not out.exists() and before.items() <= done().items()
    assert len(killed) >= 3 and killed[-1] > 0
    if not out.exists():
        subprocess.run(command, check=True, env=environment, timeout=600)
    assert files_of(out) == undisturbed and [p.name for p in tmp_path.iterdir()] == ["out"]


def _of_session(session: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(file.parent.name))
    return found
