"""Where Python lies on a file system that all nodes share, launches and slots say so, and what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpc.base import shared_environment
from hpc.base.shared_environment import shared, warning

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /shared rw shared:2 - lustre 10.0.0.1@tcp:/work rw,flock
31 30 0:41 / /shared/local\\040disk rw - xfs /dev/nvme0n1 rw
32 22 0:42 / /home rw shared:3 master:1 - nfs4 filer:/home rw,vers=4.2
33 22 0:43 / /images rw - fuse.squashfuse squashfuse rw
34 22 0:44 / /far rw - fuse.sshfs host: rw
35 22 0:45 / /twice rw - nfs filer:/x rw
36 22 0:46 / /twice rw - tmpfs tmpfs rw
torn
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    return tmp_path / "mountinfo"


@pytest.mark.parametrize(("path", "kind"), [
    ("/usr/bin", ""), ("/shared/venv", "lustre"), ("/shared", "lustre"), ("/shared/local disk/venv", ""),
    ("/home/me/venv", "nfs4"), ("/homes/me", ""), ("/images/venv", ""), ("/far/venv", "sshfs"), ("/twice/venv", ""),
])  # fmt: skip
def test_the_file_system_of_a_path(mounts: Path, path: str, kind: str) -> None:
    assert shared(Path(path), mounts) == kind


def test_no_mounts_are_known(tmp_path: Path) -> None:
    assert shared(Path("/shared"), tmp_path / "none") == "" and warning("/shared/venv", tmp_path / "none") == ""


def test_what_is_said(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warning("/usr", mounts) == ""
    said = warning("/shared/venv", mounts)
    assert "python's environment on lustre (/shared/venv)" in said and "docs/cluster.md" in said
    monkeypatch.setattr(sys, "prefix", "/usr")
    places = {"python's environment": Path("/usr"), "torch": Path("/home/me/lib"), "transformers": Path("/home/me/lib")}
    monkeypatch.setattr(shared_environment, "_places", lambda prefix: places)
    assert "environment: torch, transformers on nfs4 (/home/me/lib): every engine" in warning("/usr", mounts)


def test_torch_is_found_and_not_imported() -> None:
    before = set(sys.modules)
    assert shared_environment._places(sys.prefix).keys() >= {"python's environment", "torch", "transformers"}
    assert not {"torch", "transformers"} & (set(sys.modules) - before)
