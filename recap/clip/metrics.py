"""The metrics of CLIP's evaluations, on features of length 1. They equal clip_benchmark's, which a test checks.

N images · M texts · C classes · D dimension
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

_ROWS = 1024  # rows whose scores are in memory at a time


def recall(
    images_ND: torch.Tensor, texts_MD: torch.Tensor, image_of_text: torch.Tensor, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall@k: the share of images with one of their texts among the k nearest (i2t), and of texts with their image
    among the k nearest (t2i).

    Args:
        image_of_text: int64 [M], the number of each text's image.
    """
    largest = max(ks)
    found: dict[str, list[torch.Tensor]] = {"i2t": [], "t2i": []}
    for start in range(0, len(texts_MD), _ROWS):
        near = _nearest(texts_MD[start : start + _ROWS], images_ND, largest)
        found["t2i"].append(near == image_of_text[start : start + _ROWS, None])
    for start in range(0, len(images_ND), _ROWS):
        near = _nearest(images_ND[start : start + _ROWS], texts_MD, largest)
        own = torch.arange(start, start + len(near))
        found["i2t"].append(image_of_text[near] == own[:, None])
    hits = {name: torch.cat(parts) for name, parts in found.items()}
    return {f"{name}_r{k}": hits[name][:, :k].any(1).double().mean().item() for name in ("i2t", "t2i") for k in ks}


def _nearest(rows: torch.Tensor, columns: torch.Tensor, k: int) -> torch.Tensor:
    return (rows @ columns.T).topk(min(k, len(columns)), dim=1).indices


def class_features(texts_CTD: torch.Tensor) -> torch.Tensor:
    """One feature for each class [C, D]: the mean of its T prompts' features, normalised to length 1."""
    return F.normalize(F.normalize(texts_CTD, dim=-1).mean(1), dim=-1)


def accuracy(
    images_ND: torch.Tensor, classes_CD: torch.Tensor, labels_N: torch.Tensor, ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Zero-shot classification: the share of images whose class is among the k nearest."""
    near = torch.cat([_nearest(part, classes_CD, max(ks)) for part in images_ND.split(_ROWS)])
    hits = near == labels_N[:, None]
    return {f"top{k}": hits[:, :k].any(1).double().mean().item() for k in ks if k <= len(classes_CD)}


def choice(images_ND: torch.Tensor, true_ND: torch.Tensor, false_ND: torch.Tensor) -> dict[str, float]:
    """VG-attribution: the share of images that are nearer to their true text than to their false one."""
    return {"accuracy": ((images_ND * true_ND).sum(1) > (images_ND * false_ND).sum(1)).double().mean().item()}
