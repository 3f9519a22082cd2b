"""The one table of rates that the time model works with: ranges stated before any GPU had run this, and what replaces
them once `python -m benchmarks.gpu` has measured a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# One H200: products of large bf16 and fp8 matrices, FLOP/s, and copies, bytes/s.
PEAK_BF16, PEAK_FP8, PEAK_BYTES = 788e12, 1.45e15, 4.3e12


@dataclass(frozen=True)
class Rate:
    """FLOP/s, bytes/s or, for a gap, launches/s: from the slow end to the fast one."""

    low: float
    high: float
    source: str


_MATRICES = "stated: what large products hold at 700 W"
_STEP = "stated: 74 to 82 % of the product's bound at 256 to 512 rows"
_MOVES = "stated: 85 to 88 % of 4.3 TB/s"
STATED = {
    "prefill matrices bf16": Rate(700e12, 760e12, _MATRICES),
    "prefill matrices fp8": Rate(1.15e15, 1.30e15, _MATRICES),
    "vision matrices": Rate(560e12, 600e12, _MATRICES),
    "step matrices bf16": Rate(0.74 * PEAK_BF16, 0.82 * PEAK_BF16, _STEP),
    "step matrices fp8": Rate(0.74 * PEAK_FP8, 0.82 * PEAK_FP8, _STEP),
    "head": Rate(0.74 * PEAK_BF16, 0.82 * PEAK_BF16, _STEP),
    "vision attention": Rate(400e12, 400e12, "stated, not a range"),
    "prefill attention": Rate(400e12, 400e12, "stated, not a range"),
    "decode attention": Rate(0.82 * PEAK_BYTES, 0.92 * PEAK_BYTES, "stated: 82 to 92 % of 4.3 TB/s"),
    "elementwise": Rate(0.85 * PEAK_BYTES, 0.88 * PEAK_BYTES, _MOVES),
    "gap": Rate(1e6, 1e6, "stated: 1 us between two launches of a captured graph; none in a fill"),
}
# Rows of the stage `rates` in a report of benchmarks.gpu.
_RATES = {
    "prefill matrices bf16": "prefill matrices bf16, FLOP/s",
    "prefill matrices fp8": "prefill matrices fp8, FLOP/s",
    "step matrices bf16": "decode matrices bf16, {rows} rows, FLOP/s",
    "step matrices fp8": "decode matrices fp8, {rows} rows, FLOP/s",
    "vision matrices": "vision matrices bf16, FLOP/s",
    "head": "head bf16, 512 rows, FLOP/s",
    "elementwise": "vector copy, bytes/s",
}
# Kernels of the stage `kernels`, and whether they have a variant for the precision of matrices or of the cache.
_KERNELS = {
    "add_rms_norm": " fp8", "swiglu": " fp8", "quantise": "", "add_layer_norm": "", "quick_gelu": "",
    "rope_and_store": " fp8 cache", "decode_attention": " fp8 cache",
}  # fmt: skip


def measured_rates(report: dict[str, Any], precision: str, slots: int, attention_flop: float) -> dict[str, Rate]:
    """STATED, with the rates that a report of benchmarks.gpu has in their place, and its kernels added by their names.

    attention_flop: of one launch of the prefill's attention, since the report has only its time.
    """
    rates, kernels, found = report["stages"]["rates"], report["stages"]["kernels"], dict(STATED)
    rows = 256 if slots <= 256 else 512
    for name, key in _RATES.items():
        if (value := rates.get(key.format(rows=rows))) is not None:
            found[name] = Rate(value, value, f"measured: {key.format(rows=rows)}")
    for name, variant in _KERNELS.items():
        own = "fp8" in precision if variant == " fp8" else precision == "fp8+kv"
        label = name + variant * own
        if label in kernels:
            rate = kernels[label]["bytes_per_s"]
            found[name.replace("_attention", " attention")] = Rate(rate, rate, f"measured: {label}")
    label = "prefill_attention" + " fp8 cache" * (precision == "fp8+kv")
    if label in kernels:
        rate = attention_flop / kernels[label]["ms"] * 1e3
        found["prefill attention"] = Rate(rate, rate, f"measured: {label}")
    return found
