"""The benchmark's arithmetic, and the benchmark itself on very little work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.caption import LLAMA3_8B, bound, cost

ROOT = Path(__file__).parents[2]


def test_roofline_counts_what_an_image_costs() -> None:
    """LLaVA-1.5 with LLaMA-3-8B, counted by hand: 601 tokens of prompt, 10 of them kept, 60 written."""
    one = cost(LLAMA3_8B, 601, 10, 60, 2, 2)
    assert one.vision == pytest.approx(0.390e12, rel=0.01)  # 23 layers, patches and projector
    assert one.decode == pytest.approx(59 * 15.01e9, rel=0.001)
    assert one.prefill == pytest.approx((8.389e12 - 0.252e12) * 591 / 601 + 0.095e12, rel=0.01)
    assert one.weights == pytest.approx(15.0e9, rel=0.01)
    assert one.cache == pytest.approx(59 * 631 * 131072, rel=0.001)
    # 788 TFLOP/s and 4.3 TB/s, what one H200 was measured at.
    assert bound(one, 60, 256, 788e12, 788e12, 4.3e12)[0] == pytest.approx(76.8, rel=0.02)
    assert bound(one, 60, 64, 788e12, 788e12, 4.3e12)[0] == pytest.approx(66.1, rel=0.02)


def test_benchmark_runs(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.caption", "--images", "24", "--rounds", "1", "--batches", "24"]
    done = subprocess.run([*command, "--slots", "8", "--json", str(report)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["identical"] >= 23 and found["native"] > 0 and 0 < found["end_to_end"]["busy"] <= 1
    assert "x generate at its best" in done.stdout
