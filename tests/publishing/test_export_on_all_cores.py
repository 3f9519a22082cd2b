"""Exports whose rows several processes make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc.base import on_all_cores
from hpc.base.errors import Exit
from recap import export
from recap.exporting import files, rows
from tests.publishing.test_export import flat, no_effort, runs

__all__ = ["flat", "no_effort", "runs"]  # fixtures


@pytest.mark.slow  # it launches two runs
def test_several_processes_write_what_one_writes(
    runs: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_AT_ONCE", 1)
    monkeypatch.setattr(on_all_cores, "WORTHWHILE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(rows, "rows", lambda *_: pytest.fail("rows are made by other processes"))
    added = [f"re_caption_condition_diverse_topk={runs}/v2:caption", f"re_gpt4v_score={runs}/v2:tokens"]
    arguments = [str(runs / "v1"), str(tmp_path / "out"), "--rows-per-file=50", *(f"--add={one}" for one in added)]
    assert export.main(arguments) == Exit.COMPLETE
    names = sorted(str(path.relative_to(flat)) for path in flat.rglob("*") if path.is_file())
    assert len(names) >= 5 and names == sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    for name in {*names} - {"README.md"}:
        assert (tmp_path / "out" / name).read_bytes() == (flat / name).read_bytes(), name
    cards = [(folder / "README.md").read_text().split("\n## ") for folder in (flat, tmp_path / "out")]
    one, several = ([part for part in card if "this export: " not in part] for card in cards)  # it holds the command
    assert one == several and len(one) >= 4
