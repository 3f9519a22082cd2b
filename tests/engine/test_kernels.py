"""Each fused operation against transformers' own modules in float64; the Triton kernels in its interpreter if present.

Interpreted kernels compute on CPU tensors what the compiled ones compute on a GPU (not their speed, nor tensor cores):
    TRITON_INTERPRET=1 python -m pytest tests/engine/test_kernels.py
tests/engine/test_aot.py runs that command.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb, repeat_kv

from recap.engine import kernels
from recap.engine.kernels import (
    add_layer_norm,
    add_rms_norm,
    causal_attention,
    decode_attention,
    prefill_attention,
    quantise,
    quick_gelu,
    rope_and_store,
    rotate,
    swiglu,
)
from recap.engine.llama import Matrix
from recap.engine.precision import FP8

INTERPRETED = kernels.uses_triton(torch.zeros(1))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [64, 72, 4096])
def test_add_rms_norm(dtype: torch.dtype, hidden: int) -> None:
    x, residual, weight = random(5, hidden, dtype=dtype), random(5, hidden, dtype=dtype, seed=1), random(hidden, seed=2)
    norm = LlamaRMSNorm(hidden, 1e-5).to(DEVICE)
    norm.weight.data.copy_(weight)
    for before in (None, residual):
        total = x if before is None else x + before
        normed, kept = add_rms_norm(x, before, weight.to(dtype), 1e-5)
        assert isinstance(normed, torch.Tensor) and torch.equal(kept, total)
        torch.testing.assert_close(normed.double(), norm(total.double()), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [96, 2500])
def test_swiglu(dtype: torch.dtype, width: int) -> None:
    x = random(7, 2 * width, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    found = swiglu(x)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), F.silu(gate) * up, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("heads,kv_heads,dim", [(4, 2, 16), (6, 3, 24), (8, 1, 32), (0, 2, 16)])
def test_rope_and_store(heads: int, kv_heads: int, dim: int) -> None:
    rows, span = 9, 20
    qkv = random(rows, (heads + 2 * kv_heads) * dim)
    angles = torch.outer(torch.arange(span), 100.0 ** -(torch.arange(0, dim, 2) / dim)).repeat(1, 2).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    keys, values = (torch.full((4, kv_heads, span, dim), 7.0, device=DEVICE) for _ in range(2))
    slots = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3], device=DEVICE)
    positions = torch.tensor([5, 6, 7, 0, 1, 16, 17, 18, 19], device=DEVICE)
    query = rope_and_store(qkv, cos, sin, keys, values, slots, positions, heads)
    q, k, v = qkv.view(rows, -1, dim).split((heads, kv_heads, kv_heads), 1)
    q, k = apply_rotary_pos_emb(q[None], k[None], cos[positions][None], sin[positions][None], unsqueeze_dim=2)
    torch.testing.assert_close(query, q[0])
    torch.testing.assert_close(keys[slots, :, positions], k[0])
    assert torch.equal(values[slots, :, positions], v)
    written = torch.zeros(4, span, dtype=torch.bool, device=DEVICE)
    written[slots, positions] = True
    assert (keys.transpose(1, 2)[~written] == 7).all() and (values.transpose(1, 2)[~written] == 7).all()


@pytest.mark.parametrize("cache", [torch.float32, FP8], ids=["fp32", "fp8"])
@pytest.mark.parametrize("heads,kv_heads,dim", [(4, 2, 16), (3, 3, 24), (16, 1, 64)])
def test_decode_attention(heads: int, kv_heads: int, dim: int, cache: torch.dtype) -> None:
    """Lengths on both sides of a tile; what lies behind a length is poison that must not be read into the result."""
    rows, span = 6, 300
    lengths = torch.tensor([1, 63, 64, 129, 256, 300], device=DEVICE)
    query, keys, values = (
        random(rows, heads, dim),
        random(8, kv_heads, span, dim, seed=1),
        random(8, kv_heads, span, dim, seed=2),
    )
    for slots in (None, torch.tensor([7, 0, 3, 2, 5, 1], device=DEVICE)):
        where = torch.arange(rows, device=DEVICE) if slots is None else slots
        behind = torch.zeros(8, span, dtype=torch.bool, device=DEVICE)
        behind[where] = torch.arange(span, device=DEVICE) >= lengths[:, None]
        k, v = (t.masked_fill(behind[:, None, :, None], 400.0).to(cache) for t in (keys, values))
        found = decode_attention(query, k, v, slots, lengths)
        for row, slot in enumerate(where.tolist()):
            end = int(lengths[row])
            key, value = (repeat_kv(t[slot : slot + 1, :, :end].double(), heads // kv_heads)[0] for t in (k, v))
            weights = (query[row, :, None].double() @ key.transpose(1, 2) * dim**-0.5).softmax(-1)
            torch.testing.assert_close(found[row].double(), (weights @ value).reshape(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cache", [torch.float32, FP8], ids=["fp32", "fp8"])
@pytest.mark.parametrize("heads,kv_heads,dim,start,width", [(4, 2, 16, 0, 40), (3, 3, 24, 10, 70), (2, 1, 64, 45, 5)])
def test_prefill_attention(heads: int, kv_heads: int, dim: int, start: int, width: int, cache: torch.dtype) -> None:
    """Blocks of queries that no key tile fits; what lies behind the pass is poison."""
    span, slots = start + width + 9, torch.tensor([3, 0], device=DEVICE)
    qkv = random(2 * width, (heads + 2 * kv_heads) * dim)
    angles = torch.outer(torch.arange(span), 100.0 ** -(torch.arange(0, dim, 2) / dim)).repeat(1, 2).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    keys, values = (random(4, kv_heads, span, dim, seed=seed) for seed in (1, 2))
    for tensor in (keys, values):
        tensor[:, :, start + width :] = 400.0
    keys, values = keys.to(cache), values.to(cache)
    found = prefill_attention(qkv, cos, sin, keys, values, slots, start, heads)
    query = qkv.view(2, width, -1, dim)[:, :, :heads]
    query = rotate(query, cos[start : start + width, None], sin[start : start + width, None]).transpose(1, 2).double()
    key, value = (repeat_kv(t[slots, :, : start + width].double(), heads // kv_heads) for t in (keys, values))
    mask = torch.ones(width, start + width, dtype=torch.bool, device=DEVICE).tril(start)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).reshape(2 * width, -1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", TYPES)
def test_layer_norm_and_quick_gelu(dtype: torch.dtype) -> None:
    x, residual = random(5, 96, dtype=dtype) + 3, random(5, 96, dtype=dtype, seed=1)
    weight, bias = random(96, dtype=dtype, seed=2), random(96, dtype=dtype, seed=3)
    for before in (None, residual):
        total = x if before is None else x + before
        normed, kept = add_layer_norm(x, before, weight, bias, 1e-5)
        expected = F.layer_norm(total.double(), (96,), weight.double(), bias.double(), 1e-5)
        assert torch.equal(kept, total)
        torch.testing.assert_close(normed.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    expected = x.double() * torch.sigmoid(1.702 * x.double())
    torch.testing.assert_close(quick_gelu(x).double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_fp8_kernels_quantise_as_the_function_does() -> None:
    x, residual, weight = random(5, 64), random(5, 64, seed=1), random(64, seed=2)
    for fused, plain in (
        (quantise(x), x),
        (add_rms_norm(x, residual, weight, 1e-5, fp8=True)[0], add_rms_norm(x, residual, weight, 1e-5)[0]),
        (swiglu(x, fp8=True), swiglu(x)),
    ):
        assert isinstance(plain, torch.Tensor) and isinstance(fused, tuple)
        scale = plain.abs().amax(-1, keepdim=True) / 448
        numbers = (plain / scale).to(FP8)
        torch.testing.assert_close(fused[1], scale)
        # Triton's interpreter forgets the carry into the exponent when it rounds to e4m3 (7.9 becomes 4, not 8).
        assert (fused[0].float() == numbers.float()).float().mean() > (0.95 if INTERPRETED else 0.99)


def test_fp8_matrix_is_close() -> None:
    """Row-wise scales keep a product within the precision of e4m3 (3 bits of mantissa), outliers or not."""
    x, weight = random(16, 128), random(96, 128, seed=1)
    x[3] *= 1000
    weight[5] *= 0.001
    found = Matrix(weight, None, fp8=True)(quantise(x)).double()
    exact = x.double() @ weight.double().t()
    size = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    assert ((found - exact).abs() / size).max() < (0.1 if INTERPRETED else 0.02)


@pytest.mark.parametrize("before,new", [(0, 9), (3, 9), (9, 9), (30, 4)])
def test_causal_attention(before: int, new: int) -> None:
    query = random(2, 4, new, 16)
    key, value = random(2, 2, before + new, 16, seed=1), random(2, 2, before + new, 16, seed=2)
    mask = torch.ones(new, before + new, dtype=torch.bool, device=DEVICE).tril(before)
    expected = F.scaled_dot_product_attention(
        query.double(), repeat_kv(key, 2).double(), repeat_kv(value, 2).double(), attn_mask=mask
    )
    torch.testing.assert_close(causal_attention(query, key, value).double(), expected, rtol=1e-5, atol=1e-5)
