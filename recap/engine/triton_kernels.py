"""The Triton kernels behind `recap.engine.kernels`, whose functions say what each computes, and their launches.

One launch each, no synchronisation, fixed shapes: they can be captured in a CUDA graph. Block sizes are those of an
H100 or H200 at LLaMA-3-8B's shape; registers, shared memory and load widths are held by tests/engine/test_aot.py.
AMD's GPUs take the same path: nothing here is CUDA's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from recap.engine.precision import Activation


def _fp8_outputs(rows: int, columns: int, x: torch.Tensor, fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(rows, columns, device=x.device, dtype=torch.float8_e4m3fn if fp8 else x.dtype)
    return out, torch.empty(rows, 1, device=x.device, dtype=torch.float32)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = x.shape
    out, scale = _fp8_outputs(rows, columns, x, True)
    block = triton.next_power_of_2(columns)
    _quantise_kernel[(rows,)](x.contiguous(), out, scale, columns, BLOCK=block, num_warps=min(16, max(1, block // 512)))
    return out, scale


def add_rms_norm(
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


def swiglu(x: torch.Tensor, fp8: bool) -> Activation:
    rows, width = x.shape[0], x.shape[1] // 2
    out, scale = _fp8_outputs(rows, width, x, fp8)
    # fp8 needs the largest number of a row before it can write: one program holds the row in registers.
    block = triton.next_power_of_2(width) if fp8 else min(2048, triton.next_power_of_2(width))
    grid = (rows, 1 if fp8 else triton.cdiv(width, block))
    warps = min(16, max(1, block // 512))
    _swiglu_kernel[grid](x, out, scale, width, FP8=fp8, BLOCK=block, num_warps=warps)
    return (out, scale) if fp8 else out


def rope_and_store(
    heads: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    positions: torch.Tensor,
    query_heads: int,
) -> torch.Tensor:
    rows, all_heads, dim = heads.shape
    kv_heads = keys.shape[1]
    query = torch.empty(rows, query_heads, dim, device=heads.device, dtype=heads.dtype)
    _rope_and_store_kernel[(rows,)](
        heads, cos, sin, query, keys, values, slots, positions, keys.stride(0), keys.stride(1), keys.stride(2),
        A=query_heads, SKIP=all_heads - 2 * kv_heads, K=kv_heads, HALF=dim // 2,
        A_BLOCK=triton.next_power_of_2(max(1, query_heads)), K_BLOCK=triton.next_power_of_2(kv_heads),
        HALF_BLOCK=triton.next_power_of_2(dim // 2), num_warps=4 if query_heads else 2,
    )  # fmt: skip
    return query


def decode_attention(
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
        TILE=64, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


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
    kv_heads, dim = keys.shape[1], keys.shape[3]
    width = len(qkv) // len(slots)
    out = torch.empty(len(qkv), heads * dim, device=qkv.device, dtype=qkv.dtype)
    wide = qkv.element_size() == 4  # float32 products take no tensor cores, and twice the registers
    rows, tile = (32, 32) if wide else (64, 32)
    _prefill_attention_kernel[(triton.cdiv(width, rows), heads, len(slots))](
        qkv, cos, sin, keys, values, slots, out, dim**-0.5 * 1.4426950408889634, start, width,
        keys.stride(0), keys.stride(1), keys.stride(2), A=heads, K=kv_heads, HALF=dim // 2,
        HALF_BLOCK=max(16, triton.next_power_of_2(dim // 2)), D_BLOCK=max(16, triton.next_power_of_2(dim)),
        ROWS=rows, TILE=tile, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    block = 4096
    _quick_gelu_kernel[(triton.cdiv(x.numel(), block),)](x.contiguous(), out, x.numel(), BLOCK=block, num_warps=8)
    return out


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = x.shape
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(width)
    _add_layer_norm_kernel[(rows,)](
        x, x if residual is None else residual, weight, bias, out, total, eps, width,
        ADD=residual is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out, total


@triton.jit
def _quantised(y, scale, row):  # type: ignore[no-untyped-def]  # annotations would not compile
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
    A: tl.constexpr, SKIP: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr,
    A_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token: its first A of SKIP query heads to `query`, its keys and values to the cache."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    half = tl.arange(0, HALF_BLOCK)
    ok = half < HALF
    # Both halves of the tables are equal: one is read.
    c = tl.load(cos + position * 2 * HALF + half, ok, 0.0).to(tl.float32)[None, :]
    s = tl.load(sin + position * 2 * HALF + half, ok, 0.0).to(tl.float32)[None, :]
    base = heads + row * (SKIP + 2 * K) * 2 * HALF
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
    at = (SKIP + head[:, None]) * 2 * HALF + half[None, :]
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
def _operand(q, cache):  # type: ignore[no-untyped-def]
    """Queries as the products take them: float16 beside a cache of e4m3, which float16 holds exactly and which one
    instruction converts to; to bfloat16 it takes three, and decoding waited for them (2.6 of 4.4 TB/s on an H200)."""
    narrow: tl.constexpr = cache.dtype.element_ty.primitive_bitwidth == 8 and q.dtype.primitive_bitwidth == 16
    if narrow:
        q = q.to(tl.float32).to(tl.float16)
    return q


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
    q = _operand(tl.load(query + at, inside, 0.0), keys)
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
    tl.store(out + at, (sums / total[:, None]).to(out.dtype.element_ty), inside)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    first, second, most, total, sums, keys, values, base, time_stride, begin, position, end, scale,
    MASK: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values into the running softmax; scores are in units of log 2."""
    half = tl.arange(0, HALF_BLOCK)
    column = tl.arange(0, D_BLOCK)
    time = begin + tl.arange(0, TILE)
    place = base + time[:, None].to(tl.int64) * time_stride
    valid = (time[:, None] < end) & (half[None, :] < HALF)
    key = tl.load(keys + place + half[None, :], valid, 0.0).to(first.dtype)
    score = tl.dot(first, tl.trans(key), input_precision="ieee")
    key = tl.load(keys + place + HALF + half[None, :], valid, 0.0).to(first.dtype)
    score = tl.dot(second, tl.trans(key), score, input_precision="ieee") * scale
    if MASK:
        score = tl.where(time[None, :] <= position[:, None], score, float("-inf"))
    higher = tl.maximum(most, tl.max(score, axis=1))
    shrink = tl.exp2(most - higher)
    weight = tl.exp2(score - higher[:, None])
    value = tl.load(values + place + column[None, :], (time[:, None] < end) & (column[None, :] < 2 * HALF), 0.0)
    sums = tl.dot(
        weight.to(first.dtype), value.to(first.dtype), sums * shrink[:, None], input_precision="ieee"
    )  # fmt: skip
    return higher, total * shrink + tl.sum(weight, axis=1), sums


@triton.jit
def _prefill_attention_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, keys, values, slots, out, scale, start, width, slot_stride, head_stride, time_stride,
    A: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program a block of queries, head and image. Queries are rotated as they are read; keys and values come
    straight from the slot. Tiles start at position 0, so that a query's sums have one order whatever its block."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # those with the most keys first
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    index = block * ROWS + tl.arange(0, ROWS)
    position = start + index
    half = tl.arange(0, HALF_BLOCK)
    inside = (index[:, None] < width) & (half[None, :] < HALF)
    table = position[:, None] * 2 * HALF + half[None, :]  # both halves of the tables are equal: one is read
    c = tl.load(cos + table, inside, 0.0).to(tl.float32)
    s = tl.load(sin + table, inside, 0.0).to(tl.float32)
    at = ((row * width + index[:, None]) * (A + 2 * K) + head) * 2 * HALF + half[None, :]
    one = tl.load(qkv + at, inside, 0.0).to(tl.float32)
    two = tl.load(qkv + at + HALF, inside, 0.0).to(tl.float32)
    first = _operand((one * c - two * s).to(qkv.dtype.element_ty), keys)
    second = _operand((two * c + one * s).to(qkv.dtype.element_ty), keys)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D_BLOCK], tl.float32)
    base = slot * slot_stride + head // (A // K) * head_stride
    end = start + width
    whole = (start + block * ROWS + 1) // TILE * TILE  # up to here every query of the block sees every key
    for begin in range(0, whole, TILE):
        most, total, sums = _attend(
            first, second, most, total, sums, keys, values, base, time_stride, begin, position, end, scale,
            False, HALF, HALF_BLOCK, D_BLOCK, TILE,
        )  # fmt: skip
    for begin in range(whole, tl.minimum(start + (block + 1) * ROWS, end), TILE):
        most, total, sums = _attend(
            first, second, most, total, sums, keys, values, base, time_stride, begin, position, end, scale,
            True, HALF, HALF_BLOCK, D_BLOCK, TILE,
        )  # fmt: skip
    column = tl.arange(0, D_BLOCK)
    at = ((row * width + index[:, None]) * A + head) * 2 * HALF + column[None, :]
    found = (sums / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + at, found, (index[:, None] < width) & (column[None, :] < 2 * HALF))


@triton.jit
def _quick_gelu_kernel(x, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program a block; each of the three operations is rounded, as transformers' are."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < count, 0.0)
    scaled = (value.to(tl.float32) * 1.702).to(value.dtype).to(tl.float32)
    gate = (1.0 / (1.0 + tl.exp(-scaled))).to(value.dtype).to(tl.float32)
    tl.store(out + at, (value.to(tl.float32) * gate).to(value.dtype), at < count)


@triton.jit
def _add_layer_norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, out, total, eps, width, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row * width + columns
    value = tl.load(x + at, inside, 0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(residual + at, inside, 0.0).to(tl.float32)).to(value.dtype)
        tl.store(total + at, value, inside)
    wide = value.to(tl.float32)
    centred = tl.where(inside, wide - tl.sum(wide, axis=0) / width, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    scaled = normed * tl.load(weight + columns, inside, 0.0).to(tl.float32)
    tl.store(out + at, (scaled + tl.load(bias + columns, inside, 0.0).to(tl.float32)).to(value.dtype), inside)
