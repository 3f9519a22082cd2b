"""Attention of packed rows: samples in one row never attend to each other, whichever kernel computes it.

The boundaries between samples are passed explicitly, in the form that the kernel takes. Kernels do not have to derive
them from positions, and computing them does not wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128  # tokens along each side of a block of flex attention


def choose(name: str, device: str) -> str:
    """transformers' name of `SftConfig.attention`. "auto" is flex attention on GPUs, which skips empty blocks, and sdpa
    on CPUs."""
    if name != "auto":
        return name
    return "flex_attention" if device == "cuda" else "sdpa"


def boundaries(name: str, micro: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments that tell the language model where samples begin, besides its embeddings.

    Args:
        name: of the attention, as transformers calls it.
        micro: position_ids int64 [rows, tokens], which restart with each sample (and with the padding at a row's end),
            and `lengths` of them.
        dtype: of the embeddings.
    """
    positions = micro["position_ids"]
    if name == "flex_attention":
        return {"attention_mask": block_mask(positions)}
    if name in ("sdpa", "eager"):
        seen = dense_mask(positions)
        return {"attention_mask": seen if name == "sdpa" else (~seen).to(dtype) * torch.finfo(dtype).min}
    ends = {"cu_seq_lens_q": micro["bounds"], "cu_seq_lens_k": micro["bounds"]}
    return ends | {"max_length_q": micro["longest"], "max_length_k": micro["longest"]}


def lengths(positions: torch.Tensor) -> dict[str, Any]:
    """Numbers that `boundaries` needs, computed on the CPU so that nothing waits for the device: `bounds`, int32
    [samples + 1], where samples begin when all rows are concatenated, and the length of the longest sample.

    Args:
        positions: int64 [rows, tokens], on the CPU.
    """
    begin = (positions.flatten() == 0).nonzero()[:, 0]
    bounds = torch.cat([begin, begin.new_tensor([positions.numel()])]).to(torch.int32)
    return {"bounds": bounds, "longest": int(bounds.diff().max())}


def _starts(positions: torch.Tensor) -> torch.Tensor:
    """int64 [rows, tokens]: the place in its row at which each token's sample begins."""
    return torch.arange(positions.shape[1], device=positions.device) - positions


def dense_mask(positions: torch.Tensor) -> torch.Tensor:
    """bool [rows, 1, tokens, tokens]: whether a token (third axis) attends to another (last axis)."""
    place = torch.arange(positions.shape[1], device=positions.device)
    seen = (place <= place[:, None]) & (place >= _starts(positions)[:, :, None])
    return seen[:, None]


def block_mask(positions: torch.Tensor) -> BlockMask:
    """The same mask for flex attention, in blocks of 128 x 128 tokens, of which empty ones are skipped. No matrix of
    tokens x tokens is made."""
    tokens = positions.shape[1]
    starts = _starts(positions)
    number = torch.arange(-(-tokens // _BLOCK), device=positions.device)
    first = starts[:, number * _BLOCK][:, :, None]  # starts never decrease along a row
    last = starts[:, ((number + 1) * _BLOCK - 1).clamp(max=tokens - 1)][:, :, None]
    query, key = number[:, None], number
    full = (key < query) & (key * _BLOCK >= last)
    needed = (key <= query) & (key >= first // _BLOCK)

    def sees(row: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & (k >= starts[row, q])

    return BlockMask.from_kv_blocks(
        *_listed(needed & ~full), *_listed(full), BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens)
    )


def _listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [rows, blocks, blocks] as flex attention takes it: (number of blocks that are set, their indices first),
    int32, with an axis of heads."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]
