"""Which tokens see which: a packed row's samples never see each other, whatever kernel computes the attention.

The boundaries are passed explicitly, in the form that a kernel takes. None of them is guessed from the positions, and
none of them waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128  # tokens of a side of flex attention's blocks


def choose(name: str, device: str) -> str:
    """`SftConfig.attention` as transformers calls it. "auto": kernels that skip blocks on GPUs, plain ones on CPUs."""
    if name != "auto":
        return name
    return "flex_attention" if device == "cuda" else "sdpa"


def boundaries(name: str, micro: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What the language model is to be called with beside its embeddings.

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
    """What boundaries need and a device would have to be waited for: where samples begin in rows laid end to end
    (bounds, int32 [samples + 1]), and the tokens of the longest. positions: on the CPU."""
    begin = (positions.flatten() == 0).nonzero()[:, 0]
    bounds = torch.cat([begin, begin.new_tensor([positions.numel()])]).to(torch.int32)
    return {"bounds": bounds, "longest": int(bounds.diff().max())}


def _starts(positions: torch.Tensor) -> torch.Tensor:
    """Where each token's sample begins in its row."""
    return torch.arange(positions.shape[1], device=positions.device) - positions


def dense_mask(positions: torch.Tensor) -> torch.Tensor:
    """Whether a token (of the third axis) sees another (of the last), bool [rows, 1, tokens, tokens]."""
    place = torch.arange(positions.shape[1], device=positions.device)
    seen = (place <= place[:, None]) & (place >= _starts(positions)[:, :, None])
    return seen[:, None]


def block_mask(positions: torch.Tensor) -> BlockMask:
    """The same in blocks of 128 x 128 tokens, of which empty ones are skipped. No matrix of tokens x tokens is made."""
    tokens = positions.shape[1]
    starts = _starts(positions)
    number = torch.arange(-(-tokens // _BLOCK), device=positions.device)
    first = starts[:, number * _BLOCK][:, :, None]  # of each block's first and last token: starts never fall in a row
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
    """bool [rows, blocks, blocks] as (how many, which ones first), int32 with an axis of heads."""
    order = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]
