"""A CLIP's features of rows, computed once for all scorers that look at the same batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from recap.clip.objective import Objective
from recap.clip.preprocessing import of_folder
from recap.clip.settings import LossConfig
from recap.clip.tokens import Tokens
from recap.clip.weights import opened
from recap.score.scorer import Scored


class ClipEncoder:
    """One opened CLIP. geometry: of the square that it looks at; temperature: the factor of its cosines."""

    def __init__(self, folder: str, precision: str, device: str) -> None:
        model, config, size = opened(folder)
        made = of_folder(folder, config, size)
        self.geometry, self.context = made.geometry, config.context
        self.module = Objective(model, LossConfig(), made.mean, made.std).to(device).eval()
        self.temperature = float(self.module.scale.detach())
        self.tokens, self._device = Tokens(config), torch.device(device)
        self._half = torch.bfloat16 if precision == "bf16" else None
        self._batch: Sequence[Scored] | None = None
        self._images: list[np.ndarray | None] = []
        self._texts: dict[str, np.ndarray] = {}
        self._cut: dict[str, bool] = {}

    def images(self, rows: Sequence[Scored]) -> list[np.ndarray | None]:
        """float64 [D] of length 1 for each row with an image."""
        self._look(rows)
        return self._images

    def texts(self, rows: Sequence[Scored]) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        """Features, float64 [D] of length 1, and whether it was cut, for each text of the rows."""
        self._look(rows)
        return self._texts, self._cut

    def features(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Of further texts of the same batch, float64 [D] of length 1."""
        self._add(texts)
        return [self._texts[text] for text in texts]

    def _look(self, rows: Sequence[Scored]) -> None:
        if self._batch is rows:
            return
        self._batch, self._texts, self._cut = rows, {}, {}
        squares = [row.picture.squares[self.geometry] for row in rows if row.picture]
        made = iter(self._encoded({"images": np.stack(squares).transpose(0, 3, 1, 2)}) if squares else [])
        self._images = [next(made) if row.picture else None for row in rows]
        self._add([text for row in rows for text in (*row.texts.values(), *row.references)])

    def _add(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if not new:
            return
        ids = self.tokens.ids([" ".join(text.split()) for text in new])  # in Rust, all at once
        self._cut |= {text: len(found) > self.context - 2 for text, found in zip(new, ids, strict=True)}
        self._texts |= dict(zip(new, self._encoded({"ids": self.tokens.shape(ids)}), strict=True))

    @torch.inference_mode()
    def _encoded(self, given: dict[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for name, a in given.items()}
        with torch.autocast(self._device.type, self._half, enabled=self._half is not None):
            out = self.module(tensors)
        return F.normalize(out.double(), dim=-1).cpu().numpy()
