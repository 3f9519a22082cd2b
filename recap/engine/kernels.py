"""The few fused operations of the native engine: Triton on GPUs, plain PyTorch anywhere else.

Each pair computes the same function: products and sums in float32, rounded where transformers' eager modules
round. Shapes: M rows (tokens), H hidden, F feed-forward, A query heads, K key-value heads, D head size, B slots,
T positions of a slot, n images of a micro-batch, S tokens of a pass.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
import torch.nn.functional as F

from recap.engine.precision import FP8, FP8_MAX, Activation

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

fused: Any = None
if importlib.util.find_spec("triton"):  # CPU builds of torch come without it
    from recap.engine import triton_kernels as fused


def uses_triton(x: torch.Tensor) -> bool:
    """Whether operations on `x` run as Triton kernels."""
    return fused is not None and (x.is_cuda or INTERPRETED)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, N] -> fp8 [M, N] and float32 [M, 1] scales, one a row (also used on weights, one an output
    channel)."""
    if uses_triton(x):
        return fused.quantise(x)
    scale = (x.abs().amax(-1, keepdim=True).float() / FP8_MAX).clamp(min=1e-12)
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, fp8: bool = False
) -> tuple[Activation, torch.Tensor]:
    """The residual stream with `x` added, and its RMS norm (as transformers' LlamaRMSNorm), in fp8 if asked.

    Args:
        x: [M, H], the output of the last block, or the embeddings where `residual` is None.
        residual: [M, H] or None.
        weight: [H].

    Returns:
        (normed [M, H], x + residual [M, H])
    """
    if uses_triton(x):
        return fused.add_rms_norm(x, residual, weight, eps, fp8)
    total = x if residual is None else x + residual
    wide = total.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(total.dtype) * weight
    return (quantise(normed) if fp8 else normed), total


def swiglu(x: torch.Tensor, fp8: bool = False) -> Activation:
    """silu(gate) * up. x: [M, 2F], gate then up. Returns [M, F], in fp8 if asked."""
    if uses_triton(x):
        return fused.swiglu(x, fp8)
    gate, up = x.chunk(2, -1)
    product = F.silu(gate).mul_(up)
    return quantise(product) if fp8 else product


def rope_and_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    query_heads: int,
) -> torch.Tensor:
    """Rotate queries and keys by position; write keys and values to their slots.

    Args:
        qkv: [M, (A + 2K) * D], or [M, 2K * D].
        cos, sin: [T, D], transformers' tables (both halves equal).
        keys, values: one layer's cache [B, K, T, D], written at (slots[m], positions[m]).
        slots, positions: int64 [M].
        query_heads: A, or 0 where no rotated query is wanted.

    Returns:
        Rotated queries [M, query_heads, D].
    """
    kv_heads, dim = keys.shape[1], keys.shape[3]
    heads = qkv.view(len(qkv), -1, dim)
    if uses_triton(qkv):
        return fused.rope_and_store(heads, cos, sin, keys, values, slots, positions, query_heads)
    unused = heads.shape[1] - query_heads - 2 * kv_heads
    _, turning, value = heads.split((unused, query_heads + kv_heads, kv_heads), 1)
    turned = rotate(turning, cos[positions, None], sin[positions, None])
    query, key = turned.split((query_heads, kv_heads), 1)
    keys[slots, :, positions] = key.to(keys.dtype)
    values[slots, :, positions] = value.to(values.dtype)
    return query


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [..., D] in transformers' layout (first half paired with second half)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def decode_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor | None, lengths: torch.Tensor
) -> torch.Tensor:
    """Attention of one query a row over the first `lengths` positions of its slot.

    Args:
        query: [M, A, D].
        keys, values: one layer's cache [B, K, T, D].
        slots: int64 [M], or None: row m looks at slot m.
        lengths: int64 [M], at least 1.

    Returns:
        [M, A * D].
    """
    rows, heads, dim = query.shape
    kv_heads, span = keys.shape[1], keys.shape[2]
    if uses_triton(query):
        return fused.decode_attention(query, keys, values, slots, lengths)
    keys, values = (cache[:rows] if slots is None else take_slots(cache, slots, span) for cache in (keys, values))
    # The query heads that share a key-value head stand in for query positions: no key is copied for them.
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    mask = (torch.arange(span, device=query.device) < lengths[:, None]).view(rows, 1, 1, span)
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(rows, heads * dim)


def prefill_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    start: int,
    heads: int,
) -> torch.Tensor:
    """Causal attention of S new tokens a row, from position `start` on, over their slots' positions up to their own.

    Args:
        qkv: [n * S, (A + 2K) * D], not rotated; only its queries are read.
        cos, sin: [T, D].
        keys, values: one layer's cache [B, K, T, D], where the new tokens' keys and values already are.
        slots: int64 [n].
        heads: A.

    Returns:
        [n * S, A * D].
    """
    if uses_triton(qkv):
        return fused.prefill_attention(qkv, cos, sin, keys, values, slots, start, heads)
    width, dim = len(qkv) // len(slots), keys.shape[3]
    stop = start + width
    query = qkv.view(len(slots), width, -1, dim)[:, :, :heads]
    query = rotate(query, cos[start:stop, None], sin[start:stop, None]).transpose(1, 2)
    key, value = (take_slots(cache, slots, stop).to(query.dtype) for cache in (keys, values))
    return causal_attention(query, key, value).transpose(1, 2).reshape(len(qkv), heads * dim)


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention where the last query sees all keys, the one before it all but one, and so on.

    query [n, A, S, D], key and value [n, K, R, D] with R >= S. Returns [n, A, S, D].
    """
    before = key.shape[2] - query.shape[2]
    if before >= query.shape[2]:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(before)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    # `is_causal` skips what is masked, but aligns to the first key: a few empty queries move it into place.
    moved = F.pad(query, (0, 0, before, 0)) if before else query
    return F.scaled_dot_product_attention(moved, key, value, is_causal=True, enable_gqa=True)[:, :, before:]


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), CLIP's activation. Any shape."""
    return fused.quick_gelu(x) if uses_triton(x) else x * torch.sigmoid(1.702 * x)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream with `x` added (x itself where `residual` is None), and its layer norm.

    x, residual [M, V]; weight, bias [V]. Returns (normed, x + residual).
    """
    if uses_triton(x):
        return fused.add_layer_norm(x, residual, weight, bias, eps)
    total = x if residual is None else residual + x
    return F.layer_norm(total, weight.shape, weight, bias, eps), total


def bits(x: torch.Tensor) -> torch.Tensor:
    """fp8 numbers as bytes, which every indexing operation takes; other tensors as they are."""
    return x.view(torch.uint8) if x.dtype == FP8 else x


def take_slots(cache: torch.Tensor, slots: torch.Tensor, stop: int) -> torch.Tensor:
    """The first `stop` positions of some slots, [n, K, stop, D], of one layer's cache [B, K, T, D]."""
    if cache.is_cuda:
        return bits(cache)[slots, :, :stop].view(cache.dtype)
    return torch.stack([cache[slot, :, :stop] for slot in slots.tolist()])  # indexing is 5x slower on CPUs
