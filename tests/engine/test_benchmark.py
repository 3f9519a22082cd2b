"""The benchmark's arithmetic, and the benchmark itself on very little work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import caption
from benchmarks.caption import LLAMA3_8B, Turn, bound, cost, steady_rate

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


def test_gpu_benchmark_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of the GPU run but CUDA's own (events, graphs, memory, names), on the smallest shape."""
    smi, report = tmp_path / "nvidia-smi", tmp_path / "report.json"
    smi.write_text("#!/bin/sh\necho '1755, 2619, 650.50, 61'\necho '1695, 2619, [N/A], 61'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    arguments = "--gpu --rehearse --images 16 --slots 2 --micro-batch 1 --rounds 1 --batches 4 --sustain 0.05"
    monkeypatch.setattr(sys, "argv", ["caption", *arguments.split(), "--decode-workers", "1", "--json", str(report)])
    with pytest.raises(SystemExit) as end:
        caption.main()
    assert end.value.code == 0
    found = json.loads(report.read_text())
    own = found["own"]
    assert list(own) == ["bf16", "fp8", "fp8+kv"] and set(found["hugging_face"]) == {"dynamic 4", "static 4"}
    for each in own.values():
        assert each["images_per_s"] > 0 and each["steady"] > 0 and 0 < each["share"] < 1 and each["slots"] == 2
        assert each["device_during"]["power.draw"] == {"mean": 650.5, "min": 650.5, "max": 650.5}
        assert sum(each["ms"].values()) == pytest.approx(1e3 / each["images_per_s"])
    assert set(found["ladder"]) == {"no graph", "graph", "graph, no refill"}
    assert 0 < found["end_to_end"]["busy"] <= 1 and found["end_to_end"]["share"] > 0
    assert "clocks.sm 1755 (1755-1755)" in capsys.readouterr().out
    # What the report would miss is told from its numbers.
    own["bf16"] |= {"ratio": 1.5, "share": 0.7, "images_per_s": 10.0}
    own["fp8"]["images_per_s"], found["end_to_end"]["share"] = 13.0, 0.96
    assert len(caption.targets(found, gpu=True)) == 4


def test_steady_rate_leaves_out_start_and_drain() -> None:
    """10 slots, a caption a second once they run; the start and the drain are slow."""
    start = [Turn(float(second), 0, 10) for second in range(100)]
    steady = [Turn(100.0 + i, i, min(10 + i, 80)) for i in range(1, 71)]
    drain = [Turn(170.0 + 50 * i, 70 + i, 80) for i in range(1, 11)]
    assert steady_rate(start + steady + drain, 10, 80) == pytest.approx(1.0)
    assert steady_rate(start + steady + drain, 30, 80) is None


def test_monitor_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caption.DeviceMonitor("0") as monitor:
        pass
    assert monitor.found == {} and "none" in str(monitor)
