"""Packed samples never see each other, whatever computes the attention."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.integrations import flex_attention
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from recap.sft.attention import block_mask, choose, dense_mask, lengths
from tests.sft.conftest import Make


def loss_of(task: Any) -> float:
    """Mean loss of a token of the first samples."""
    module, batch = task.module(), task.batch(0, 16, 0, 1)
    with torch.no_grad():
        return sum(module(micro).item() for micro in batch.micro) / batch.weight


@pytest.fixture
def varlen() -> Iterator[dict[str, int]]:
    """Stands in for flash-attn: exact, from the lengths that it is given, and nothing without them."""
    calls = {"calls": 0, "samples": 0}

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **given: Any
    ) -> tuple[torch.Tensor, None]:
        assert attention_mask is None and given["max_length_q"] == given["max_length_k"]
        bounds = given["cu_seq_lens_q"]
        assert bounds.dtype == torch.int32 and torch.equal(bounds, given["cu_seq_lens_k"])
        assert bounds[-1] == query.shape[0] * query.shape[2] and int(bounds.diff().max()) == given["max_length_q"]
        times = query.shape[1] // key.shape[1]
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        out = torch.empty_like(q)
        for first, end in pairwise(bounds.tolist()):
            a, b, c = (x[first:end].transpose(0, 1)[None] for x in (q, k, v))
            out[first:end] = F.scaled_dot_product_attention(a, b, c, is_causal=True)[0].transpose(0, 1)
        calls["calls"] += 1
        calls["samples"] += len(bounds) - 1
        return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None

    AttentionInterface.register("varlen_stand_in", attend)
    AttentionMaskInterface.register("varlen_stand_in", flash_attention_mask)
    yield calls


@pytest.mark.parametrize(("pack", "rows"), [(0, 4), (300, 1), (300, 3)])
def test_flash_attention_is_told_the_boundaries(task: Make, varlen: dict[str, int], pack: int, rows: int) -> None:
    plain = loss_of(task(rows=1))
    assert loss_of(task(attention="varlen_stand_in", pack=pack, rows=rows)) == pytest.approx(plain, rel=1e-5)
    assert varlen["calls"] >= 3 and varlen["samples"] >= 3 * 16


@pytest.mark.parametrize("attention", ["flex_attention", "eager"])
def test_other_kernels(task: Make, monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    """Flex attention on the CPU, not compiled: that takes longer than all else here."""
    monkeypatch.setattr(flex_attention, "WrappedFlexAttention", lambda training: lambda: flex_attention.flex_attention)
    plain = loss_of(task(rows=1))
    assert loss_of(task(attention=attention, pack=300, rows=2)) == pytest.approx(plain, rel=1e-5)


def test_blocks_that_are_skipped_hold_nothing() -> None:
    """The table of 128 x 128 blocks, which compiled kernels alone read, against the whole mask."""
    samples = [[300, 5, 128, 256, 100], [1, 127, 640, 21], [789], [128] * 6 + [21]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in samples])
    seen, found = dense_mask(positions), block_mask(positions)
    tiles = F.pad(seen, (0, 107, 0, 107)).view(4, 1, 7, 128, 7, 128).transpose(3, 4)
    inside = F.pad(torch.ones_like(seen), (0, 107, 0, 107)).view(4, 1, 7, 128, 7, 128).transpose(3, 4)
    assert torch.equal(found.to_dense().bool(), tiles.flatten(-2).any(-1))
    assert found.full_kv_num_blocks is not None and found.full_kv_indices is not None
    full = torch.zeros(4, 7, 7, dtype=torch.bool)  # those in which the mask is not asked for
    for row, block in torch.cartesian_prod(torch.arange(4), torch.arange(7)).tolist():
        count = found.full_kv_num_blocks[row, 0, block]
        full[row, block, found.full_kv_indices[row, 0, block, :count].long()] = True
    assert (tiles | ~inside).flatten(-2).all(-1)[:, 0][full].all()
    assert full[2].sum() == 21 and full[0].sum() > 0 and not full[3].any()
    q = torch.arange(789)
    for row in range(4):
        assert torch.equal(found.mask_mod(torch.tensor(row), torch.tensor(0), q[:, None], q[None]), seen[row, 0])
    ends = [0, 300, 305, 433, 689, 789, 790, 917, 1557, 1578]
    told = lengths(positions[:2])
    assert told["bounds"].tolist() == ends and told["longest"] == 640


def test_gpus_skip_blocks_by_default() -> None:
    assert choose("auto", "cuda") == "flex_attention" and choose("auto", "cpu") == "sdpa"
    assert choose("flash_attention_2", "cuda") == "flash_attention_2"
