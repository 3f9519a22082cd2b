"""The work of one launch, from its arguments: bytes that are read and written, FLOP of matrix products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# The cache is counted by the positions that are touched; the tables of the rotary embedding stay in the L2 cache.
_APART = ("keys", "values", "cos", "sin")


def size(tensors: Iterable[Any]) -> int:
    """Bytes of some tensors, each counted once."""
    different = {id(x): x for x in tensors if isinstance(x, torch.Tensor)}
    return sum(x.numel() * x.element_size() for x in different.values())


def operator_bytes(name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> int:
    """Bytes that one of PyTorch's operators reads and writes. Operators that pick rows read as much as they write."""
    if name.startswith(("embedding", "index.")):
        return 2 * size(outputs)
    return size([*inputs, *outputs])


def operator_flop(name: str, inputs: list[torch.Tensor]) -> int:
    """FLOP of a matrix product or a dense attention; 0 for other operators."""
    if name.startswith("linear"):
        return 2 * inputs[0].numel() * len(inputs[1])
    if name.startswith("_scaled_mm"):
        return 2 * inputs[0].numel() * inputs[1].shape[1]
    if name.startswith("scaled_dot_product_attention"):
        return 4 * inputs[0].numel() * inputs[1].shape[2]
    return 0


def kernel_bytes(kernel: str, given: dict[str, Any]) -> int:
    """Bytes that a launch of one of the engine's Triton kernels reads and writes.

    given: every argument of the launch by name. What decode attention reads of the cache depends on the captions'
    lengths, and is not counted here.
    """
    plain = size(value for name, value in given.items() if name not in _APART)
    if given.get("FP8") is False:
        plain -= size([given["scale"]])  # allocated, not written
    if kernel == "_rope_and_store_kernel":
        return plain - _unread(given["heads"], given["A"] + 2 * given["K"]) + _written(given)
    if kernel == "_prefill_attention_kernel":
        return plain - _unread(given["qkv"], given["A"], given["A"] + 2 * given["K"]) + _visible(given)
    return plain


def _unread(x: torch.Tensor, read: int, of: int | None = None) -> int:
    """Bytes of [M, heads, D] or [M, heads * D] that a kernel skips, since it reads only `read` of the heads."""
    heads = of or x.shape[1]
    return size([x]) * (heads - read) // heads


def _written(given: dict[str, Any]) -> int:
    """Bytes of the keys and values that a launch writes to the cache, for every row."""
    return len(given["heads"]) * 2 * given["K"] * 2 * given["HALF"] * given["keys"].element_size()


def _visible(given: dict[str, Any]) -> int:
    """Bytes of the keys and values of all positions up to the pass's last, once for each row."""
    positions = len(given["slots"]) * (given["start"] + given["width"])
    return positions * 2 * given["K"] * 2 * given["HALF"] * given["keys"].element_size()
