"""The module that the training loop calls: pixels and token ids in, this rank's sum of losses out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from recap.clip import losses
from recap.clip.settings import LARGEST_LOGIT_SCALE, LossConfig


class Objective(nn.Module):
    """A model, its loss and the normalisation of pixels.

    With `loss.chunk`, the towers process that many images at a time and keep only their features. In the backward pass
    each chunk is computed again with the same random numbers (gradient caching, Gao et al. 2021). The loss is that of
    the whole batch.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, model: Any, config: LossConfig, mean: tuple[float, ...], std: tuple[float, ...], bias: float | None = None
    ) -> None:
        """bias: the sigmoid loss's learned bias, where weights are loaded; None: the config's. mean, std: of pixels'
        channels in [0, 1]."""
        super().__init__()
        self.model, self.config = model, config
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        if config.kind == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor([config.bias if bias is None else bias]))

    def forward(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        """The sum of this rank's losses.

        Args:
            micro: images: uint8 [b, 3, H, W]. ids: int64 [b, K, T]. keep (optional): int64 [b, n], the numbers of the
                patches that are kept. With only images, or only ids [b, T], the features [b, D] are returned instead,
                for evaluation.
        """
        if "ids" not in micro:
            return self.model.encode_image(self.pixels(micro["images"]))[0]
        if "images" not in micro:
            return self.model.encode_text(micro["ids"])
        ids, texts = micro["ids"], micro["ids"].shape[1]
        size = self.config.chunk or len(ids)
        images: list[torch.Tensor] = []
        patches: list[torch.Tensor] = []
        encoded: list[torch.Tensor] = []
        for start in range(0, len(ids), size):
            part = {name: value[start : start + size] for name, value in micro.items()}
            run = (lambda p: checkpoint(self._encode, p, use_reentrant=False)) if size < len(ids) else self._encode
            image, patch, text = run(part)
            images.append(image)
            patches += [patch] if patch is not None else []
            encoded.append(text)
        grouped = _wide(torch.cat(patches)) if patches else None
        with torch.autocast(ids.device.type, enabled=False):
            texts_bKD = F.normalize(_wide(torch.cat(encoded)), dim=-1).unflatten(0, (-1, texts))
            return self._loss(F.normalize(_wide(torch.cat(images)), dim=-1), texts_bKD, grouped)

    def _encode(self, part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        grouped = self.config.grouping > 0
        image, patches = self.model.encode_image(self.pixels(part["images"]), part.get("keep"), patches=grouped)
        return image, patches, self.model.encode_text(part["ids"].flatten(0, 1))

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised float pixels of uint8 [b, 3, H, W]."""
        return (images.float() - self.mean) / self.std

    @property
    def scale(self) -> torch.Tensor:
        """The inverse temperature."""
        return _wide(self.model.logit_scale).exp()

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp the logarithm of the scale, so that the scale is between 1 and 100, as OpenAI's CLIP does."""
        self.model.logit_scale.clamp_(0.0, LARGEST_LOGIT_SCALE)

    def _loss(self, images: torch.Tensor, texts: torch.Tensor, patches: torch.Tensor | None) -> torch.Tensor:
        """This rank's sum of losses, a float scalar; the other ranks' features are gathered inside.

        images: [B, D] and texts: [B, K, D], of unit length; patches: [B, P, D], not normalised, or None.
        """
        kind, stream = self.config.kind, self.config.stream
        if kind == "sigmoid":
            return losses.sigmoid_loss(images, texts[:, 0], self.scale, self.logit_bias)
        if kind == "multi_positive":
            loss = losses.multi_positive_loss(images, texts, self.scale, stream)
        else:
            loss = losses.softmax_loss(images, texts[:, 0], self.scale, stream)
        if patches is not None:
            grouped = losses.grouping_loss(patches, texts, self.scale, self.config.grouping_threshold)
            loss = loss + self.config.grouping * grouped
        return loss


def _wide(values: torch.Tensor) -> torch.Tensor:
    """The values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
