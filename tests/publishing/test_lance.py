"""Exports to Lance, read by pylance and datasets."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit
from recap import export
from tests.publishing.test_export import flat, no_effort, runs

__all__ = ["flat", "no_effort", "runs"]  # fixtures


@pytest.mark.slow  # pylance is in no test installation
def test_lance_reads_it(runs: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lance = pytest.importorskip("lance")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    out, extra = tmp_path / "lance", f"re_caption_condition_diverse_topk={runs}/v2:caption"
    arguments = [str(runs / "v1"), str(out), "--lance", "--add", extra, "--add", f"re_gpt4v_score={runs}/v2:tokens"]
    assert export.main([*arguments, "--shard-size", "50"]) == Exit.COMPLETE
    found = lance.dataset(str(out / "data/train.lance"))
    assert found.to_table().to_pylist() == pq.read_table(flat / "data").to_pylist()
    assert [fragment.count_rows() for fragment in found.get_fragments()] == [50, 50, 17]
    read = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["key"][:] == pq.read_table(flat / "data")["key"].to_pylist()


def test_lance_is_asked_for_before_the_work(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    assert export.main([str(run), str(tmp_path / "out"), "--lance"]) == Exit.USAGE
    assert "needs pylance, which is not installed: pip install pylance" in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
