"""What a device does at most: matrix products at a captioner's own shapes, copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.random_captioner import Shape
from benchmarks.timing import best_time
from recap.engine.kernels import quantise
from recap.engine.llama import Matrix
from recap.engine.precision import FP8


def matrix_sizes(shape: Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of a decoder layer's four matrices."""
    dim = shape.head_dim or shape.hidden // shape.heads
    return [
        (shape.hidden, (shape.heads + 2 * shape.kv_heads) * dim),
        (shape.heads * dim, shape.hidden),
        (shape.hidden, 2 * shape.ffn),
        (shape.ffn, shape.hidden),
    ]


def vision_sizes(shape: Shape) -> list[tuple[int, int]]:
    """Inputs and outputs of a vision layer's four matrices."""
    wide, ffn = shape.vision_hidden, shape.vision_ffn
    return [(wide, 3 * wide), (wide, wide), (wide, ffn), (ffn, wide)]


def matmul_rate(
    rows: int, sizes: list[tuple[int, int]], device: torch.device, dtype: torch.dtype, spend_s: float
) -> float:
    """FLOP/s of a layer's matrix products with `rows` rows, weighted as a layer has them; torch.float8_e4m3fn: with
    row-wise scales, as the engine runs them."""
    layers: list[Callable[[], object]] = []
    for k, n in sizes:
        x, w = torch.randn(rows, k, device=device), torch.randn(n, k, device=device)
        if dtype == FP8:
            layers.append(partial(Matrix(w, None, fp8=True), quantise(x)))
        else:
            layers.append(partial(torch.mm, x.to(dtype), w.to(dtype).t(), out=x.new_empty(rows, n, dtype=dtype)))
    flop = 2 * rows * sum(k * n for k, n in sizes)
    return flop / best_time(lambda: [layer() for layer in layers], device, spend_s)


def copy_rate(device: torch.device, spend_s: float) -> float:
    """Bytes/s read plus written by a copy of 1 GiB (GPU) or 128 MiB (CPU) of random bytes."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_time(lambda: target.copy_(source), device, spend_s)
