"""The few fused operations of the native engine: Triton on GPUs, plain PyTorch anywhere else.

Each is memory-bound, and each pair computes the same function: products and sums in float32, rounded where
transformers' eager modules round. Shapes: M rows (tokens), H hidden, F feed-forward, A query heads, K
key-value heads, D head size, B slots, T positions of a slot.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = None

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest number of e4m3
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# An activation as matrix products take it: a plain tensor, or its fp8 numbers with float32 [M, 1] scales.
Activation = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def uses_triton(x: torch.Tensor) -> bool:
    """Whether operations on `x` run as Triton kernels."""
    return triton is not None and (x.is_cuda or _INTERPRETED)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, N] -> fp8 [M, N] and float32 [M, 1] scales, one a row (also used on weights, one an output
    channel)."""
    if uses_triton(x):
        return _triton_quantise(x)
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
        return _triton_add_rms_norm(x, residual, weight, eps, fp8)
    total = x if residual is None else x + residual
    wide = total.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(total.dtype) * weight
    return (quantise(normed) if fp8 else normed), total


def swiglu(x: torch.Tensor, fp8: bool = False) -> Activation:
    """silu(gate) * up. x: [M, 2F], gate then up. Returns [M, F], in fp8 if asked."""
    if uses_triton(x):
        return _triton_swiglu(x, fp8)
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
        qkv: [M, (A + 2K) * D], or [M, 2K * D] with `query_heads` 0.
        cos, sin: [T, D], transformers' tables (both halves equal).
        keys, values: one layer's cache [B, K, T, D], written at (slots[m], positions[m]).
        slots, positions: int64 [M].

    Returns:
        Rotated queries [M, A, D].
    """
    kv_heads, dim = keys.shape[1], keys.shape[3]
    heads = qkv.view(len(qkv), query_heads + 2 * kv_heads, dim)
    if uses_triton(qkv):
        return _triton_rope_and_store(heads, cos, sin, keys, values, slots, positions, query_heads)
    turning, value = heads.split((query_heads + kv_heads, kv_heads), 1)
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
        return _triton_decode_attention(query, keys, values, slots, lengths)
    keys, values = (cache[:rows] if slots is None else take_slots(cache, slots, span) for cache in (keys, values))
    # The query heads that share a key-value head stand in for query positions: no key is copied for them.
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    mask = (torch.arange(span, device=query.device) < lengths[:, None]).view(rows, 1, 1, span)
    keys, values = keys.to(query.dtype), values.to(query.dtype)
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(rows, heads * dim)


def bits(x: torch.Tensor) -> torch.Tensor:
    """fp8 numbers as bytes, which every indexing operation takes; other tensors as they are."""
    return x.view(torch.uint8) if x.dtype == FP8 else x


def take_slots(cache: torch.Tensor, slots: torch.Tensor, stop: int) -> torch.Tensor:
    """The first `stop` positions of some slots, [n, K, stop, D], of one layer's cache [B, K, T, D]."""
    if cache.is_cuda:
        return bits(cache)[slots, :, :stop].view(cache.dtype)
    return torch.stack([cache[slot, :, :stop] for slot in slots.tolist()])  # indexing is 5x slower on CPUs


# Triton: one launch each, no synchronisation, fixed shapes, so that they can be captured in a CUDA graph.


def _fp8_outputs(rows: int, columns: int, x: torch.Tensor, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(rows, columns, device=x.device, dtype=FP8 if fp8 else x.dtype)
    return out, torch.empty(rows, 1, device=x.device, dtype=torch.float32)


def _triton_quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = x.shape
    out, scale = _fp8_outputs(rows, columns, x, True)
    block = triton.next_power_of_2(columns)
    _quantise_kernel[(rows,)](x.contiguous(), out, scale, columns, BLOCK=block, num_warps=min(16, max(1, block // 512)))
    return out, scale


def _triton_add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, fp8: bool
) -> tuple[Activation, torch.Tensor]:
    rows, hidden = x.shape
    out, scale = _fp8_outputs(rows, hidden, x, fp8)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(hidden)
    _add_rms_norm_kernel[(rows,)](
        x, x if residual is None else residual, weight, out, total, scale, eps, hidden,
        ADD=residual is not None, FP8=fp8, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return ((out, scale) if fp8 else out), total


def _triton_swiglu(x: torch.Tensor, fp8: bool) -> Activation:
    rows, width = x.shape[0], x.shape[1] // 2
    out, scale = _fp8_outputs(rows, width, x, fp8)
    # fp8 needs the largest number of a row before it can write: one program holds the row in registers.
    block = triton.next_power_of_2(width) if fp8 else min(2048, triton.next_power_of_2(width))
    grid = (rows, 1 if fp8 else triton.cdiv(width, block))
    warps = min(16, max(1, block // 512))
    _swiglu_kernel[grid](x, out, scale, width, FP8=fp8, BLOCK=block, num_warps=warps)
    return (out, scale) if fp8 else out


def _triton_rope_and_store(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    query_heads: int,
) -> torch.Tensor:
    rows, _, dim = heads.shape
    kv_heads = keys.shape[1]
    query = torch.empty(rows, query_heads, dim, device=heads.device, dtype=heads.dtype)
    _rope_and_store_kernel[(rows,)](
        heads, cos, sin, query, keys, values, slots, positions, keys.stride(0), keys.stride(1), keys.stride(2),
        A=query_heads, K=kv_heads, HALF=dim // 2, A_BLOCK=triton.next_power_of_2(max(1, query_heads)),
        K_BLOCK=triton.next_power_of_2(kv_heads), HALF_BLOCK=triton.next_power_of_2(dim // 2), num_warps=4,
    )  # fmt: skip
    return query


def _triton_decode_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor | None, lengths: torch.Tensor
) -> torch.Tensor:
    rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    out = torch.empty(rows, heads * dim, device=query.device, dtype=query.dtype)
    group = heads // kv_heads
    _decode_attention_kernel[(rows, kv_heads)](
        query.contiguous(), keys, values, slots if slots is not None else lengths, lengths, out, dim**-0.5,
        keys.stride(0), keys.stride(1), keys.stride(2), HAS_SLOTS=slots is not None, K=kv_heads, G=group,
        G_BLOCK=max(16, triton.next_power_of_2(group)), D=dim, D_BLOCK=max(16, triton.next_power_of_2(dim)),
        TILE=128 if query.element_size() == 2 else 64, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


if triton is not None:

    @triton.jit
    def _quantised(y: Any, scale: Any, row: Any):  # type: ignore[no-untyped-def]
        """Scale numbers of a row to e4m3 and store the scale (448 = largest e4m3)."""
        factor = tl.maximum(tl.max(tl.abs(y), axis=0) / 448.0, 1e-12)
        tl.store(scale + row, factor)
        return tl.minimum(tl.maximum(y / factor, -448.0), 448.0)

    @triton.jit
    def _quantise_kernel(x, out, scale, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        """One program a row."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        at = row * columns + column
        value = tl.load(x + at, column < columns, 0.0).to(tl.float32)
        tl.store(out + at, _quantised(value, scale, row).to(out.dtype.element_ty), column < columns)

    @triton.jit
    def _add_rms_norm_kernel(  # type: ignore[no-untyped-def]
        x, residual, weight, out, total, scale, eps, hidden,
        ADD: tl.constexpr, FP8: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One program a row."""
        row = tl.program_id(0).to(tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < hidden
        at = row * hidden + columns
        value = tl.load(x + at, inside, 0.0)
        if ADD:
            value = (value.to(tl.float32) + tl.load(residual + at, inside, 0.0).to(tl.float32)).to(value.dtype)
            tl.store(total + at, value, inside)
        wide = value.to(tl.float32)
        wide = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden + eps)
        # Rounded before the weight is applied, as transformers does.
        normed = wide.to(value.dtype).to(tl.float32) * tl.load(weight + columns, inside, 0.0).to(tl.float32)
        normed = normed.to(value.dtype)
        if FP8:
            tl.store(out + at, _quantised(normed.to(tl.float32), scale, row).to(out.dtype.element_ty), inside)
        else:
            tl.store(out + at, normed, inside)

    @triton.jit
    def _swiglu_kernel(x, out, scale, width, FP8: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        """One program a row and block; with FP8, one a row."""
        row = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < width
        gate = tl.load(x + row * 2 * width + columns, inside, 0.0)
        up = tl.load(x + row * 2 * width + width + columns, inside, 0.0)
        wide = gate.to(tl.float32)
        active = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
        product = (active * up.to(tl.float32)).to(gate.dtype)
        at = row * width + columns
        if FP8:
            tl.store(out + at, _quantised(product.to(tl.float32), scale, row).to(out.dtype.element_ty), inside)
        else:
            tl.store(out + at, product, inside)

    @triton.jit
    def _rope_and_store_kernel(  # type: ignore[no-untyped-def]
        heads, cos, sin, query, keys, values, slots, positions, slot_stride, head_stride, time_stride,
        A: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr,
        A_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One program a token: its queries to `query`, its keys and values to the cache."""
        row = tl.program_id(0).to(tl.int64)
        slot = tl.load(slots + row).to(tl.int64)
        position = tl.load(positions + row).to(tl.int64)
        half = tl.arange(0, HALF_BLOCK)
        ok = half < HALF
        # Both halves of the tables are equal: one is read.
        c = tl.load(cos + position * 2 * HALF + half, ok, 0.0).to(tl.float32)[None, :]
        s = tl.load(sin + position * 2 * HALF + half, ok, 0.0).to(tl.float32)[None, :]
        base = heads + row * (A + 2 * K) * 2 * HALF
        if A > 0:
            head = tl.arange(0, A_BLOCK)
            at = head[:, None] * 2 * HALF + half[None, :]
            inside = (head[:, None] < A) & ok[None, :]
            first = tl.load(base + at, inside, 0.0).to(tl.float32)
            second = tl.load(base + at + HALF, inside, 0.0).to(tl.float32)
            target = query + row * A * 2 * HALF + at
            tl.store(target, (first * c - second * s).to(query.dtype.element_ty), inside)
            tl.store(target + HALF, (second * c + first * s).to(query.dtype.element_ty), inside)
        head = tl.arange(0, K_BLOCK)
        at = (A + head[:, None]) * 2 * HALF + half[None, :]
        inside = (head[:, None] < K) & ok[None, :]
        first = tl.load(base + at, inside, 0.0).to(tl.float32)
        second = tl.load(base + at + HALF, inside, 0.0).to(tl.float32)
        place = slot * slot_stride + head[:, None] * head_stride + position * time_stride + half[None, :]
        tl.store(keys + place, (first * c - second * s).to(keys.dtype.element_ty), inside)
        tl.store(keys + place + HALF, (second * c + first * s).to(keys.dtype.element_ty), inside)
        first = tl.load(base + K * 2 * HALF + at, inside, 0.0)
        second = tl.load(base + K * 2 * HALF + at + HALF, inside, 0.0)
        tl.store(values + place, first.to(values.dtype.element_ty), inside)
        tl.store(values + place + HALF, second.to(values.dtype.element_ty), inside)

    @triton.jit
    def _decode_attention_kernel(  # type: ignore[no-untyped-def]
        query, keys, values, slots, lengths, out, scale, slot_stride, head_stride, time_stride,
        HAS_SLOTS: tl.constexpr, K: tl.constexpr, G: tl.constexpr, G_BLOCK: tl.constexpr,
        D: tl.constexpr, D_BLOCK: tl.constexpr, TILE: tl.constexpr,
    ):  # fmt: skip
        """One program a row and key-value head: its group of queries, padded to 16 rows for tensor cores.

        Tiles start at position 0 and end with the row's own length, so that no neighbour changes the order of
        sums.
        """
        row = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1).to(tl.int64)
        slot = tl.load(slots + row).to(tl.int64) if HAS_SLOTS else row
        length = tl.load(lengths + row).to(tl.int32)
        group = tl.arange(0, G_BLOCK)
        column = tl.arange(0, D_BLOCK)
        at = (row * K * G + head * G + group[:, None]) * D + column[None, :]
        inside = (group[:, None] < G) & (column[None, :] < D)
        q = tl.load(query + at, inside, 0.0)
        most = tl.full([G_BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([G_BLOCK], tl.float32)
        sums = tl.zeros([G_BLOCK, D_BLOCK], tl.float32)
        base = slot * slot_stride + head * head_stride
        for start in range(0, length, TILE):
            time = start + tl.arange(0, TILE)
            place = base + time[:, None].to(tl.int64) * time_stride + column[None, :]
            valid = (time[:, None] < length) & (column[None, :] < D)
            key = tl.load(keys + place, valid, 0.0).to(q.dtype)
            score = tl.dot(q, tl.trans(key), input_precision="ieee") * scale
            score = tl.where(time[None, :] < length, score, float("-inf"))
            higher = tl.maximum(most, tl.max(score, axis=1))
            shrink = tl.exp(most - higher)
            weight = tl.exp(score - higher[:, None])
            value = tl.load(values + place, valid, 0.0).to(q.dtype)
            sums = sums * shrink[:, None] + tl.dot(weight.to(q.dtype), value, input_precision="ieee")
            total = total * shrink + tl.sum(weight, axis=1)
            most = higher
        tl.store(out + at, (sums / total[:, None]).to(q.dtype), inside)
