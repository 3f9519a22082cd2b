"""Publishing to a Hub that is busy, changes meanwhile, or holds other content; killed, it goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc.base.errors import Exit, UserError
from hpc.base.lock import hold
from recap import export, publish
from recap.exporting import hub as sending
from recap.exporting.hub import send
from tests.publishing.conftest import ROOT
from tests.support.fake_hub import FakeHub

TOKEN = "hf_kfvJPwQmZ7XzRt"
STATED = ["--caption-licence", "cc-by-4.0", "--image-licence", "other: each image's own"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "nowhere")
    monkeypatch.setattr(export, "status", lambda run: {})
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    with FakeHub() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        yield found


@pytest.fixture
def out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(export, "status", lambda run: {})
    assert export.main([str(run), str(tmp_path / "out"), *STATED, "--shard-size", "10"]) == Exit.COMPLETE
    return tmp_path / "out"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_published_with_one_command(run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    """The export is made, sent, and not sent again; every file has the digest that it has here."""
    try:
        assert publish.main([str(run), "me/captions", *STATED]) == Exit.COMPLETE
        repo = hub.repos["me/captions"]
        assert set(repo.files) == names(run / "export") == {"README.md", "lengths.png", "shards.json", *data(1)}
        assert len(hub.xorbs) == 1 and len(repo.commits) == 2
        assert publish.main([str(run), "me/captions"]) == Exit.COMPLETE
        said = capsys.readouterr().out.splitlines()
        assert said[-1].startswith(f"0 files, 0.0 MiB sent to {hub.address}/datasets/me/captions · 4 were there")
        assert len(hub.xorbs) == 1 and len(repo.commits) == 2 and not list((run / "control").glob("publishing*"))
        assert publish.main([str(run), "me/captions", *STATED]) == Exit.USAGE
        assert "write its licences into README.md" in capsys.readouterr().err.replace("\n", " ")
    finally:
        shutil.rmtree(run / "export", ignore_errors=True)


def data(count: int) -> set[str]:
    return {f"data/train-{n:05d}.parquet" for n in range(count)}


def test_other_content_is_refused_and_update_replaces_it(
    run: Path, out: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(run), "me/x", "--export", str(out)]
    assert publish.main(command) == Exit.COMPLETE
    repo = hub.repos["me/x"]
    before = dict(repo.files)
    repo.files |= {"old.parquet": before["lengths.png"], "data/[a]*.txt": before["shards.json"], ".gitattributes": {}}
    repo.files[".gitattributes"] = before["shards.json"]
    repo.files["data/train-00001.parquet"] = {**before["data/train-00001.parquet"], "lfs": before["lengths.png"]["lfs"]}
    commits = len(repo.commits)
    assert publish.main(command) == Exit.USAGE
    said = capsys.readouterr().err.replace("\n", " ")
    assert "1 other than here (data/train-00001.parquet, …) and 2 that are not here (data/[a]*.txt, …)" in said
    assert len(repo.commits) == commits
    assert publish.main([*command, "--update"]) == Exit.COMPLETE
    assert repo.files == {**before, ".gitattributes": before["shards.json"]}
    assert set(repo.commits[-1]["paths"]) == {"old.parquet", "data/[a]*.txt", "data/train-00001.parquet"}


def test_a_busy_hub_is_waited_for(out: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After wherever it comes, and 504 although the commit has landed: each file is there once."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    seen: Counter[str] = Counter()

    def busy(hub: FakeHub, request: str) -> tuple[int, dict[str, str]] | None:
        kind = request.partition("?")[0]
        seen[kind] += 1
        return (429, {"Retry-After": "7"}) if seen[kind] == 1 and "/api/" in kind else None

    def late(hub: FakeHub, request: str) -> tuple[int, dict[str, str]] | None:
        return (504, {}) if "/commit/" in request and seen[request] == 2 else None

    hub.before, hub.after = busy, late
    sent = send(out, "me/x", "captions")
    repo = hub.repos["me/x"]
    assert set(repo.files) == names(out) and sent.files == len(repo.files)
    assert len([c for c in repo.commits if c["paths"]]) == 1
    kinds = [kind for kind in seen if "/api/" in kind]
    assert (
        len(kinds) >= 6 and waits.count(7.0) + waits.count(8.0) >= 6 and seen["POST /api/datasets/me/x/commit/main"] > 2
    )


def test_others_commit_meanwhile(out: Path, hub: FakeHub) -> None:
    """Twice: what they add stays, and ours gets there. All the while: who they are is said."""
    left = [2]

    def meanwhile(hub: FakeHub, request: str) -> None:
        if "/commit/" in request and left[0]:
            left[0] -= 1
            repo = hub.repos["me/x"]
            repo.files[f"theirs-{len(repo.commits)}.md"] = {"oid": "0" * 40, "size": 1}
            repo.commit("Their title", [], "alice")

    hub.before = meanwhile
    send(out, "me/x", "captions")
    assert (
        not left[0]
        and names(out) < set(hub.repos["me/x"].files)
        and len(hub.repos["me/x"].files) == 2 + len(names(out))
    )
    hub.repos.clear()
    left[0] = 99  # times that somebody else is faster
    with pytest.raises(
        UserError, match=r"changes all the while, 5 times by now: alice commits \(the last: “Their title”"
    ):
        send(out, "me/x", "captions")
    assert left[0] == 94 and not names(out) & set(hub.repos["me/x"].files)


@pytest.mark.slow(ci=True)
def test_killed_after_the_first_of_three_commits(run: Path, out: Path, hub: FakeHub, tmp_path: Path) -> None:
    """The second run sends nothing that the first committed; the token is in no file, no output, no command line."""
    for number in range(520):
        (out / "data" / f"more-{number:03d}.parquet").write_bytes(b"%d" % number * 9)
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "recap.publish", str(run), "me/x", "--export", str(out)]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HOME": str(home),
        "TMPDIR": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    lines: list[bytes] = []

    def kill(hub: FakeHub, request: str) -> None:
        if "/commit/" in request:
            lines.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
            process.send_signal(signal.SIGKILL)
            process.wait()

    hub.after = kill
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL and len(lines) == 1, said.decode()
    repo, first = hub.repos["me/x"], dict(hub.repos["me/x"].files)
    assert 200 < len(first) < 300
    hub.after = lambda hub, request: None
    again = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=True)
    assert set(repo.files) == names(out) and b"were there" in again.stdout
    committed = [path for commit in repo.commits for path in commit["paths"]]
    assert len(committed) == len(set(committed)) == len(repo.files) and len(repo.commits) == 1 + 3
    assert all(repo.files[path] == facts for path, facts in first.items())
    everything = [said, again.stdout, again.stderr, *lines]
    everything += [p.read_bytes() for f in (home, out, run) for p in f.rglob("*") if p.is_file()]
    assert not [text for text in everything if TOKEN.encode() in text]


def test_mistakes(
    run: Path,
    out: Path,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card, command = out / "README.md", [str(run), "me/x", "--export", str(out)]
    text = card.read_text()

    def refused(says: str, *more: str) -> None:
        assert publish.main([*command, *more]) == Exit.USAGE
        said = capsys.readouterr().err.replace("\n", " ")
        assert says in said and TOKEN not in said, said

    for wrong, says in (
        (text.replace("license: cc-by-4.0\n", ""), "states not all licences: `license` in its head"),
        (
            text.replace("each image's own", "not stated by who made this export"),
            "“not stated by who made this export”",
        ),
        (text.partition("---\n\n")[2], "has no head"),
        (text.replace("pretty_name: shown", "pretty_name: [shown"), "is no YAML"),
        (re.sub("identity `..", "identity `zz", text), "does not name"),
    ):
        card.write_text(wrong)
        refused(says)
    card.unlink()
    refused("is no export: it has no README.md")
    card.write_text(text)
    monkeypatch.setattr(sending, "MOST_FILES", 3)
    refused("data holds 4 files, of which the Hub takes 3 a folder")
    monkeypatch.setattr(sending, "MOST_FILES", 10_000)
    with hold(run / "control" / "publishing", "publish"):
        refused("another publish, process")
    with monkeypatch.context() as other:
        other.setenv("SLURM_ARRAY_TASK_ID", "3")
        refused("One process publishes")
    with monkeypatch.context() as other:
        other.delenv("HF_TOKEN")
        other.setattr("huggingface_hub.get_token", lambda: None)
        refused("no token of the Hub here")
    assert not hub.requests
    hub.before = lambda hub, request: (401, {"X-Error-Message": f"{TOKEN} is no token"})
    refused("the Hub answers 401")
    hub.before = lambda hub, request: (400, {}) if "validate-yaml" in request else None
    refused("Invalid metadata in README.md")
    assert publish.main([str(run), "not a/good name", "--export", str(out)]) == Exit.USAGE
    assert "Repo id must" in capsys.readouterr().err.replace("\n", " ")
