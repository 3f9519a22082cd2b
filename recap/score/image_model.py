"""A transformer of images as scorers run it, on the squares that the decode pool has made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig

from hpc.base.errors import UserError
from recap.clip.preprocessing import of_transformers
from recap.score.scorer import ScoreInput


class ImageModel:
    """A model with its processor's normalisation.

    Args:
        folder: a checkpoint of transformers. kind: the transformers class that opens it.
        precision: fp32 or bf16, of weights and pixels.

    Raises:
        UserError: the checkpoint does not name the size of its images.
    """

    def __init__(self, folder: str, kind: str, device: str, precision: str) -> None:
        config = AutoConfig.from_pretrained(folder)
        size = getattr(getattr(config, "vision_config", config), "image_size", None)
        if not isinstance(size, int):
            raise UserError(f"score: {folder}: its config.json names no image_size, which is needed here.")
        prepared = of_transformers(Path(folder), size)
        self.geometry = prepared.geometry
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = torch.device(device)
        self.model: Any = getattr(transformers, kind).from_pretrained(folder, dtype=self._dtype).to(device).eval()
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) * 255 for values in (prepared.mean, prepared.std)
        )

    @torch.inference_mode()
    def run(
        self, rows: Sequence[ScoreInput], take: Callable[[Any, torch.Tensor], torch.Tensor]
    ) -> list[np.ndarray | None]:
        """`take(model, pixels)` for all rows with an image at once; pixels are normalised, [b, 3, H, W].

        Returns:
            For each row its float64 row of what `take` returned, None where it has no image.
        """
        shown = [row for row in rows if row.picture]
        if not shown:
            return [None] * len(rows)
        made = iter(take(self.model, self.pixels(shown)).double().cpu().numpy())
        return [next(made) if row.picture else None for row in rows]

    def pixels(self, rows: Sequence[ScoreInput]) -> torch.Tensor:
        """Normalised pixels [b, 3, H, W], in the model's dtype, of the rows that have an image."""
        squares = np.stack([row.picture.squares[self.geometry] for row in rows if row.picture])
        pixels = torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2).float()
        return ((pixels - self._mean) / self._std).to(self._dtype)
