"""The benchmark's arithmetic, and the benchmark itself on very little work."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.caption_work import LLAMA3_8B, Turn, steady_rate
from benchmarks.image_cost import bound, cost
from benchmarks.timing import DeviceMonitor

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


@pytest.mark.slow
def test_benchmark_runs(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.caption", "--images", "24", "--rounds", "1", "--batches", "24"]
    done = subprocess.run([*command, "--slots", "8", "--json", str(report)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["identical"] >= 23 and found["native"] > 0 and 0 < found["end_to_end"]["busy"] <= 1
    assert "x generate at its best" in done.stdout


SMI = "#!/bin/sh\necho '1755, 2619, 650.50, 61'\necho '1695, 2619, [N/A], 61'\n"


def lease(out: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tests.support.bare_machine",
        "benchmarks.gpu",
        "--rehearse",
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.slow
def test_lease_rehearsed_on_a_bare_machine(tmp_path: Path) -> None:
    """The stages of `python -m benchmarks.gpu` without CUDA and without this project's other packages."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    only = "rates,kernels,fp8+kv,generate,clip,dit,vllm"
    command = lease(tmp_path / "out", "--only", only, "--minutes", "8")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/gpu.json").read_text())
    found = report["stages"]
    assert list(found) == only.split(",") and report["minutes"] == 8
    assert found["rates"]["sensors, bf16"]["power.draw"] == {"mean": 650.5, "min": 650.5, "max": 650.5}
    assert found["kernels"]["decode_attention fp8 cache"]["difference"] == 0 and len(found["kernels"]) == 15
    assert found["fp8+kv"]["images/s"] > 0 and found["fp8+kv"]["slots"] == 2
    assert found["generate"]["static cache, batch 4, images/s"] > 0
    assert found["clip"]["eager, samples/s"] > 0
    assert "diffusers is not installed" in found["dit"]["left out"] and "vllm" in found["vllm"]["left out"]
    table = (tmp_path / "out/gpu.md").read_text()
    assert table.startswith("# CPU, ") and "| slots | 2 |" in table


@pytest.mark.slow
def test_lease_that_is_killed_keeps_what_it_has(tmp_path: Path) -> None:
    process = subprocess.Popen(
        lease(tmp_path, "--only", "rates,bf16"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("bf16: step, ms"):
            break
    process.kill()
    process.wait()
    found = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert found["rates"]["seconds"] > 0 and "seconds" not in found["bf16"] and found["bf16"]["step, ms"] > 0
    assert "step, ms" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(
    "action,name,line",
    [
        (lambda: 1 // 0, "failed", "ZeroDivisionError: integer division or modulo by zero"),
        (lambda: os._exit(7), "failed", "the process ended with 7"),
        (lambda: time.sleep(600), "failed", "over its 2 s"),
        (lambda: importlib.import_module("absent"), "left out", "absent is not installed"),
    ],
)
def test_stage_that_fails_is_a_line(action: Callable[[], object], name: str, line: str) -> None:
    from benchmarks.gpu import Stage, run_stage  # here and not above: every test process collects this file
    from benchmarks.gpu_setting import REHEARSAL

    def stage(setting: object, note: Callable[[str, object], None]) -> None:
        note("before", 1.5)
        action()

    found: dict[str, object] = {}
    run_stage(Stage("it", 1, stage), REHEARSAL, 2 if "over" in line else 60, found.__setitem__)
    assert found.pop("device") == "CPU" and found.pop("before") == 1.5 and isinstance(found.pop("seconds"), float)
    assert found == {name: line}


def test_steady_rate_leaves_out_start_and_drain() -> None:
    """10 slots, a caption a second once they run; the start and the drain are slow."""
    start = [Turn(float(second), 0, 10) for second in range(100)]
    steady = [Turn(100.0 + i, i, min(10 + i, 80)) for i in range(1, 71)]
    drain = [Turn(170.0 + 50 * i, 70 + i, 80) for i in range(1, 11)]
    assert steady_rate(start + steady + drain, 10, 80) == pytest.approx(1.0)
    assert steady_rate(start + steady + drain, 30, 80) is None


def test_monitor_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with DeviceMonitor("0") as monitor:
        pass
    assert monitor.found == {} and "none" in str(monitor)
