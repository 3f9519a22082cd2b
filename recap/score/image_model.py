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
from recap.score.scorer import Scored


class ImageModel:
    """A model and what its processor does with pixels. geometry: of the square that it looks at."""

    def __init__(self, folder: str, kind: str, device: str, precision: str) -> None:
        told = AutoConfig.from_pretrained(folder)
        size = getattr(getattr(told, "vision_config", told), "image_size", None)
        if not isinstance(size, int):
            raise UserError(f"score: {folder}: its config.json names no image_size of its squares: not known here.")
        prepared = of_transformers(Path(folder), size)
        self.geometry = prepared.geometry
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = torch.device(device)
        self.model: Any = getattr(transformers, kind).from_pretrained(folder, dtype=self._dtype).to(device).eval()
        self._mean, self._std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) * 255 for values in (prepared.mean, prepared.std)
        )

    @torch.inference_mode()
    def run(self, rows: Sequence[Scored], take: Callable[[Any, torch.Tensor], torch.Tensor]) -> list[np.ndarray | None]:
        """What `take` makes of the model and normalised pixels [b, 3, H, W]: float64, one a row with an image."""
        shown = [row for row in rows if row.picture]
        if not shown:
            return [None] * len(rows)
        made = iter(take(self.model, self.pixels(shown)).double().cpu().numpy())
        return [next(made) if row.picture else None for row in rows]

    def pixels(self, rows: Sequence[Scored]) -> torch.Tensor:
        """[b, 3, H, W] of rows with an image."""
        squares = np.stack([row.picture.squares[self.geometry] for row in rows if row.picture])
        pixels = torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2).float()
        return ((pixels - self._mean) / self._std).to(self._dtype)
