"""Lower precisions run end to end on a CPU (slowly), change little, and say how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import drive

from benchmarks.random_captioner import Shape, photo
from recap.engine import CaptionerConfig, Request, load_engine
from recap.engine.agreement import compare
from recap.engine.native import NativeEngine


def test_agreement_orders_the_precisions(tiny: Callable[..., Path]) -> None:
    """The same precision agrees wholly; bf16 nearly; fp8 and an fp8 cache less."""
    base = CaptionerConfig(model=str(tiny()), max_tokens=12, micro_batch=4, slots=8, decode_workers=0)
    images = [photo(i) for i in range(12)] + [b"junk"]
    same = compare(base, base, images, "cpu")
    assert (same.images, same.identical, same.top1, same.divergence) == (12, 1.0, 1.0, 0.0)
    bf16 = compare(base, replace(base, precision="bf16"), images, "cpu")
    fp8 = compare(base, replace(base, precision="fp8", kv_precision="fp8"), images, "cpu")
    assert 0 < bf16.divergence < fp8.divergence < 2
    assert bf16.top1 > fp8.top1 > 0.6 and fp8.equal_words <= bf16.equal_words <= 1


@pytest.mark.parametrize("changes", [{"precision": "fp8"}, {"kv_precision": "fp8"}, {"precision": "bf16"}])
def test_lower_precisions_do_not_depend_on_neighbours(changes: dict[str, str], tiny: Callable[..., Path]) -> None:
    config = replace(CaptionerConfig(model=str(tiny()), max_tokens=10, micro_batch=2, slots=6), **changes)  # type: ignore[arg-type]
    requests = [Request(i, photo(i), key=str(i)) for i in range(14)]
    found = []
    for order in (requests, requests[::-1]):
        engine = load_engine(config)
        found.append(drive(engine, order))
        engine.close()
    assert found[0] == found[1] and len({caption.text for caption in found[0].values()}) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [Shape(), Shape(hidden=512, heads=4, kv_heads=2, head_dim=128, ffn=1024)])
def test_gpu_tokens_equal_the_cpu_and_graphs_change_nothing(shape: Shape, tiny: Callable[..., Path]) -> None:
    """fp32 on a GPU through the Triton kernels and a CUDA graph, against fp32 on the CPU; then without the graph."""
    torch.backends.cuda.matmul.allow_tf32 = False
    config = CaptionerConfig(model=str(tiny(shape)), max_tokens=24, micro_batch=4, slots=8, precision="fp32")
    requests = [Request(i, photo(i), key=str(i)) for i in range(60)]
    found = []
    for device, graph in (("cuda", True), ("cuda", False), ("cpu", False)):
        engine = load_engine(replace(config, cuda_graph=graph), device)
        found.append(drive(engine, requests))
        engine.close()
    assert found[0] == found[1]
    assert sum(found[0][i] == found[2][i] for i in range(60)) >= 57  # rounding decides near-ties


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_sizes_itself_and_lower_precisions_agree(tiny: Callable[..., Path]) -> None:
    shape = Shape(hidden=512, heads=4, kv_heads=2, head_dim=128, ffn=1024)
    base = CaptionerConfig(model=str(tiny(shape)), max_tokens=24, micro_batch=4, slots=16)
    engine = load_engine(replace(base, slots=None), "cuda")
    assert isinstance(engine, NativeEngine) and engine.generator.plan.slots > 64
    engine.close()
    images = [photo(i) for i in range(24)]
    full = replace(base, precision="fp32")
    assert compare(full, replace(base, precision="bf16"), images, "cuda").top1 > 0.95
    if torch.cuda.get_device_capability() >= (8, 9):
        assert compare(full, replace(base, precision="fp8", kv_precision="fp8"), images, "cuda").top1 > 0.7
