"""Contrastive losses over a global batch: every rank computes its own rows against the columns gathered from all ranks.

Each function returns the *sum* over this rank's rows. The sum over ranks, divided by the global batch, equals the loss
of a single process, and so do the gradients, since `all_gather_features` passes them back to the rank of the features.

    b rows of this rank · B rows of all ranks · K texts an image · D dimension
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


def ranks() -> tuple[int, int]:
    """(this rank, number of ranks); (0, 1) without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """All ranks' tensors, concatenated. In the backward pass, each rank gets the gradient of its own, summed over
    ranks."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad,) = grads
        rank, world = ranks()
        if grad.is_cuda:
            mine = torch.empty_like(grad[: len(grad) // world])
            dist.reduce_scatter_tensor(mine, grad.contiguous())
            return mine
        total = grad.contiguous()  # gloo has no reduce_scatter
        dist.all_reduce(total)
        return total.chunk(world)[rank]


def all_gather_features(local: torch.Tensor) -> torch.Tensor:
    """The features of all ranks [B, ...], in the order of ranks. local: [b, ...]. Differentiable."""
    return local if ranks()[1] == 1 else _Gather.apply(local)


def _targets(count: int, device: torch.device) -> torch.Tensor:
    """int64 [count]: the numbers of this rank's rows among the rows of all ranks."""
    return torch.arange(count, device=device) + ranks()[0] * count


def cross_entropy(
    rows_bD: torch.Tensor, columns_BD: torch.Tensor, scale: torch.Tensor, targets: torch.Tensor, stream: int = 0
) -> torch.Tensor:
    """Sum over rows of -log softmax(scale * rows @ columns)[target].

    Args:
        rows_bD, columns_BD: features. scale: inverse temperature, a scalar. targets: int64 [b], each row's column.
        stream: columns whose logits are in memory at a time; 0: all.
    """
    if stream and stream < len(columns_BD):
        return _Streamed.apply(rows_bD * scale, columns_BD, targets, stream)
    return F.cross_entropy(scale * rows_bD @ columns_BD.T, targets, reduction="sum")


class _Streamed(torch.autograd.Function):
    """Cross entropy that holds the logits of only `stream` columns at a time, in both passes."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor, stream: int
    ) -> torch.Tensor:
        total = torch.full((len(rows),), -torch.inf, device=rows.device, dtype=rows.dtype)
        for part in columns.split(stream):
            total = torch.logaddexp(total, (rows @ part.T).logsumexp(1))
        ctx.save_for_backward(rows, columns, targets, total)
        ctx.stream = stream
        return (total - (rows * columns[targets]).sum(1)).sum()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, columns, targets, total = ctx.saved_tensors
        d_rows, d_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        for start in range(0, len(columns), ctx.stream):
            part = columns[start : start + ctx.stream]
            share = (rows @ part.T - total[:, None]).exp()
            d_rows += share @ part
            d_columns[start : start + ctx.stream] += share.T @ rows
        d_rows -= columns[targets]
        d_columns.index_add_(0, targets, rows, alpha=-1)
        return grads[0] * d_rows, grads[0] * d_columns, None, None


def softmax_loss(images_bD: torch.Tensor, texts_bD: torch.Tensor, scale: torch.Tensor, stream: int = 0) -> torch.Tensor:
    """InfoNCE over the global batch, in both directions. Features have length 1. stream: see `cross_entropy`."""
    targets = _targets(len(images_bD), images_bD.device)
    to_text = cross_entropy(images_bD, all_gather_features(texts_bD), scale, targets, stream)
    to_image = cross_entropy(texts_bD, all_gather_features(images_bD), scale, targets, stream)
    return (to_text + to_image) / 2


def sigmoid_loss(
    images_bD: torch.Tensor, texts_bD: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """SigLIP's loss (Zhai et al. 2023): binary cross entropy of every pair. scale, bias: scalars."""
    logits = scale * images_bD @ all_gather_features(texts_bD).T + bias
    signs = torch.full_like(logits, -1.0)
    signs.scatter_(1, _targets(len(images_bD), logits.device)[:, None], 1.0)
    return -F.logsigmoid(signs * logits).sum()


def multi_positive_loss(
    images_bD: torch.Tensor, texts_bKD: torch.Tensor, scale: torch.Tensor, stream: int = 0
) -> torch.Tensor:
    """InfoNCE with K texts for each image. An image's other texts are not its negatives; a text's positive is its
    image."""
    count, texts = texts_bKD.shape[:2]
    targets = _targets(count, images_bD.device)
    all_texts, all_images = all_gather_features(texts_bKD), all_gather_features(images_bD)
    total = images_bD.new_zeros(())
    for k in range(texts):
        total = total + cross_entropy(images_bD, all_texts[:, k], scale, targets, stream)
        total = total + cross_entropy(texts_bKD[:, k], all_images, scale, targets, stream)
    return total / (2 * texts)


def grouping_loss(
    patches_bND: torch.Tensor, texts_bKD: torch.Tensor, scale: torch.Tensor, threshold: float | None = None
) -> torch.Tensor:
    """DreamLIP's grouping loss: each text is contrasted with a weighted mean of its image's patches, over the batch and
    over the texts.

    The weights are the text's similarities with the patches, scaled to [0, 1], set to 0 below `threshold` (None: 1/N),
    and scaled to sum 1.
    """
    patches_bND = F.normalize(patches_bND, dim=-1)
    similar = torch.einsum("bkd,bnd->bkn", texts_bKD, patches_bND)
    low, high = similar.amin(-1, keepdim=True), similar.amax(-1, keepdim=True)
    weights = (similar - low) / (high - low).clamp_min(1e-6)
    lowest = 1 / patches_bND.shape[1] if threshold is None else threshold
    weights = torch.where(weights < lowest, 0.0, weights)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)
    grouped = F.normalize(torch.einsum("bkn,bnd->bkd", weights, patches_bND), dim=-1)
    texts = texts_bKD.shape[1]
    return softmax_loss(grouped.flatten(0, 1), texts_bKD.flatten(0, 1), scale) / texts
