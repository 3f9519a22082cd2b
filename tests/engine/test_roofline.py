"""The time model: its counts are the engine's and the arithmetic's, its schedule the engine's, its rates one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.caption_work import LLAMA3_8B
from benchmarks.efficiencies import STATED, measured_rates
from benchmarks.pass_counts import Counts, count_passes
from benchmarks.refills import turns
from benchmarks.roofline import Scene, caption_lengths, expect, rungs, show, times

REPORT = json.loads((Path(__file__).parents[2] / "benchmarks/results/gpu.json").read_text())
LENGTHS = caption_lengths(2304)
FP8 = Scene(LLAMA3_8B, "fp8+kv", 512, 32, LENGTHS)


@pytest.fixture(scope="module")
def passes() -> dict[str, Counts]:
    pytest.importorskip("triton")
    return count_passes(LLAMA3_8B, 32, 512, "fp8+kv")


def test_counted_flop_are_those_of_the_arithmetic(passes: dict[str, Counts]) -> None:
    """Counted from the engine's launches, and by hand from the shape."""
    cost = FP8.cost()
    dense = {name: sum(counts.flop.values()) for name, counts in passes.items()}
    assert dense["vision"] == pytest.approx(32 * cost.vision, rel=0.001)
    assert dense["prefill"] + 31 * FP8.attention_flop() == pytest.approx(32 * cost.prefill, rel=0.001)
    assert dense["step"] * (FP8.tokens - 1) / 512 == pytest.approx(cost.decode, rel=0.001)


def test_counted_bytes_are_those_of_the_kernels(passes: dict[str, Counts]) -> None:
    rows, hidden, ffn = 32 * 591, 4096, 14336
    moved = passes["prefill"].moved
    # 31 layers of all rows and one of the 32 last tokens; two bytes in, one out, 4 a row for the scale.
    assert moved["triton _swiglu_kernel"] == (31 * rows + 32) * (2 * 2 * ffn + ffn + 4)
    assert moved["triton _quantise_kernel"] == (31 * rows + 32) * (3 * hidden + 4)
    stored = 32 * rows * 2 * 8 * 128 * (2 + 1)  # keys and values: bf16 in, fp8 out
    assert moved["triton _rope_and_store_kernel"] == pytest.approx(stored, rel=0.01)
    visible = 31 * (2 * rows * hidden * 2 + 32 * 601 * 2 * 8 * 128)
    assert moved["triton _prefill_attention_kernel"] == pytest.approx(visible, rel=1e-6)
    step = passes["step"]
    assert step.moved["triton _quantise_kernel"] == 32 * 512 * (3 * hidden + 4)
    assert step.launches["_scaled_mm.default"] == 4 * 32 and step.launches["triton _decode_attention_kernel"] == 32


def test_time_of_a_pass_is_its_work_at_the_tables_rates(passes: dict[str, Counts]) -> None:
    found = times(FP8, "step", passes["step"], STATED)
    layer = 4096 * (6144 + 4096 + 2 * 14336) + 14336 * 4096
    assert found["matrices"][1] == pytest.approx(2 * 512 * 32 * layer / (0.74 * 1.45e15) * 1e3)
    assert found["matrices"][0] / found["matrices"][1] == pytest.approx(0.74 / 0.82)
    assert found["attention"][0] == pytest.approx(512 * (601 + FP8.tokens / 2) * 65536 / (0.92 * 4.3e12) * 1e3)
    assert found["gaps"][0] == pytest.approx(passes["step"].launches.total() * 1e-3)
    own = measured_rates(REPORT, "fp8+kv", 512, FP8.attention_flop())
    assert own["step matrices fp8"].low == own["step matrices fp8"].high == pytest.approx(1098.49e12, rel=1e-4)
    assert own["decode attention"].low == pytest.approx(2.975e12, rel=1e-3)  # of the fp8 cache
    assert own["prefill attention"].low == pytest.approx(94.7e9 / 0.583e-3, rel=0.01)
    assert own["gap"] == STATED["gap"]  # not measured: what was stated stays
    assert measured_rates(REPORT, "bf16", 256, 1.0)["step matrices bf16"].low == pytest.approx(515.9e12, rel=1e-4)


def test_schedule_is_the_engines() -> None:
    """On the H200 2,304 images took 371 steps; and a run small enough to follow by hand."""
    assert len(turns(LENGTHS, 512, 32, 0.4, 0.02)) / 2304 == pytest.approx(REPORT["stages"]["bf16"]["steps an image"])
    played = turns([3, 1, 2, 4], 2, 1, 10.0, 1.0)
    # Ends are known a step late: a caption of one token frees its slot in the turn after its fill.
    assert [turn.begun for turn in played] == [1, 2, 2, 3, 4, 4, 4, 4]
    assert [turn.finished for turn in played] == [0, 0, 2, 2, 3, 3, 3, 4]
    assert played[-1].clock == 4 * 10 + len(played)


def test_expectation_holds_beside_what_was_measured(
    passes: dict[str, Counts], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the rates that the H200 showed for single products and kernels, the whole engine is foreseen within 4 %."""
    monkeypatch.setattr("benchmarks.roofline.count_passes", lambda *_: passes)
    found, seen = expect(FP8, REPORT), REPORT["stages"]["fp8+kv"]
    whole, full = found.rate(1)
    assert whole == pytest.approx(seen["images/s"], rel=0.04)
    assert full == pytest.approx(seen["images/s between full slots"], rel=0.04)
    assert found.total("prefill", 1) == pytest.approx(seen["prefill, ms"], rel=0.03)
    best = rungs(found)[0]
    assert best.name.startswith("SwiGLU") and 0.02 < best.gain < 0.06
    show(found, REPORT)
    said = capsys.readouterr().out
    assert "| 94.2 |" in said and "| 100.1 |" in said and "Next rungs:\n- SwiGLU" in said
    # Before any measurement: a range, and rungs from its slow end.
    show(expect(FP8, None), None)
    said = capsys.readouterr().out
    assert " to " in said and "measured: " in said and "| -" in said
    quick = replace(FP8, lengths=LENGTHS[:600])
    assert expect(quick, None).rate(0)[1] is None  # too short a run to have full slots for long


def test_stated_ranges_run_from_slow_to_fast() -> None:
    assert all(0 < rate.low <= rate.high and rate.source for rate in STATED.values())
