"""The CUDA path without CUDA: every kernel compiled for A100, H100/H200 and B200, and run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = {80: 164 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of shared memory an SM gives to its CTAs
REGISTERS = 65536  # of an SM

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def compiled(precision: str, *capabilities: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.engine.aot", precision, *map(str, capabilities)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def ctas(kernel: dict[str, Any]) -> int:
    """CTAs that fit an SM at once."""
    by_registers = REGISTERS // (-(-kernel["registers"] // 8) * 8 * 32 * kernel["warps"])
    return min(by_registers, SHARED[kernel["capability"]] // (kernel["shared"] + 1024), 64 // kernel["warps"])


def check(found: list[dict[str, Any]]) -> None:
    """Nothing spills, memory is read 16 bytes at a time, and enough CTAs of the attentions fit an SM to hide its
    latency."""
    for kernel in found:
        where = f"{kernel['kernel']} for sm_{kernel['capability']}: {kernel}"
        # ptxas puts 8 bytes of one kernel on Blackwell's stack; nothing has run there.
        assert kernel["stack"] <= (8 if kernel["capability"] == 100 else 0), where
        assert kernel["registers"] <= 192 and kernel["shared"] <= 80 * 1024, where
        assert kernel["loads of 16 bytes"] > 0 and kernel["narrow stores"] == 0, where
        if "attention" in kernel["kernel"]:
            assert kernel["tensor core"] > 0 and ctas(kernel) >= 2, where


@pytest.mark.slow(ci=True)
def test_kernels_compile_for_hopper() -> None:
    """bf16, fp8 and the fp8 cache."""
    found = compiled("bf16", 90)
    assert len(found) == 21 and sum("fp8" in kernel["kernel"] for kernel in found) == 8
    check(found)


@pytest.mark.slow  # a minute and a half
def test_kernels_compile_for_ampere_and_blackwell() -> None:
    """A100 has no e4m3: the engine refuses fp8 there (test_precision.py), and no such kernel is compiled."""
    found = compiled("bf16", 80, 100)
    assert not any("fp8" in k["kernel"] or "quantise" in k["kernel"] for k in found if k["capability"] == 80)
    check(found)


@pytest.mark.slow  # minutes: products without tensor cores are unrolled
def test_fp32_kernels_compile() -> None:
    assert all(kernel["shared"] <= 160 * 1024 for kernel in compiled("fp32", 80, 90))


@pytest.mark.slow  # half a minute of interpreted kernels
def test_kernels_equal_their_twins_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "tests/engine/test_kernels.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
