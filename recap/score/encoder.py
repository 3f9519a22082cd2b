"""A CLIP's features of rows, computed once for all scorers that look at the same batch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from recap.clip.objective import Objective
from recap.clip.preprocessing import of_folder
from recap.clip.settings import LossConfig
from recap.clip.tokens import Tokens
from recap.clip.weights import opened
from recap.data.images import BadImage
from recap.engine.decode import decode
from recap.score.scorer import Scored

_REMEMBERED = 4096  # features of images of bags


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
        self._images: list[np.ndarray | None] | None = None
        self._texts: dict[str, np.ndarray] = {}
        self._cut: dict[str, bool] = {}
        self._known: OrderedDict[bytes, np.ndarray | None] = OrderedDict()  # of images in bags

    @classmethod
    def shared(
        cls, opened: dict[tuple[str, str], ClipEncoder], folder: str, precision: str, device: str
    ) -> ClipEncoder:
        """That of a folder and precision among those that are opened, where it is put."""
        if (folder, precision) not in opened:
            opened[folder, precision] = cls(folder, precision, device)
        return opened[folder, precision]

    def images(self, rows: Sequence[Scored]) -> list[np.ndarray | None]:
        """float64 [D] of length 1 for each row with an image. The tower runs once a batch, whoever asks."""
        self._look(rows)
        if self._images is None:
            squares = [row.picture.squares[self.geometry] for row in rows if row.picture]
            made = iter(self._seen(squares))
            self._images = [next(made) if row.picture else None for row in rows]
        return self._images

    def texts(self, rows: Sequence[Scored]) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        """Features, float64 [D] of length 1, and whether it was cut, for each text of the rows."""
        self._look(rows)
        self.features([text for row in rows for text in (*row.texts.values(), *row.references)])
        return self._texts, self._cut

    def features(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Of further texts of the same batch, float64 [D] of length 1."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            ids = self.tokens.ids([" ".join(text.split()) for text in new])  # in Rust, all at once
            self._cut |= {text: len(found) > self.context - 2 for text, found in zip(new, ids, strict=True)}
            self._texts |= dict(zip(new, self._encoded({"ids": self.tokens.shape(ids)}), strict=True))
        return [self._texts[text] for text in texts]

    def bags(self, rows: Sequence[Scored]) -> list[list[np.ndarray]]:
        """Features of the other images in each row's bag, without those that cannot be decoded.

        Rows of one bag mostly stand in one batch, so that their features are there; of others they are remembered.
        """
        for row, own in zip(rows, self.images(rows), strict=True):
            if row.picture and own is not None:
                self._known[_name(row.picture.data)] = own
        others = {_name(data): data for row in rows for data in row.bag or ()}
        squares = {name: self._square(data) for name, data in others.items() if name not in self._known}
        readable = [name for name, square in squares.items() if square is not None]
        self._known |= dict.fromkeys(squares)
        self._known |= dict(zip(readable, self._seen([squares[name] for name in readable]), strict=True))
        found = [[one for data in row.bag or () if (one := self._known[_name(data)]) is not None] for row in rows]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _square(self, data: bytes) -> np.ndarray | None:
        try:
            return decode(data, self.geometry)
        except BadImage:
            return None

    def _look(self, rows: Sequence[Scored]) -> None:
        if self._batch is not rows:
            self._batch, self._images, self._texts, self._cut = rows, None, {}, {}

    def _seen(self, squares: Sequence[np.ndarray | None]) -> np.ndarray:
        shown = [square for square in squares if square is not None]
        return self._encoded({"images": np.stack(shown).transpose(0, 3, 1, 2)}) if shown else np.zeros((0, 0))

    @torch.inference_mode()
    def _encoded(self, given: dict[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for name, a in given.items()}
        with torch.autocast(self._device.type, self._half, enabled=self._half is not None):
            out = self.module(tensors)
        return F.normalize(out.double(), dim=-1).cpu().numpy()


def _name(data: bytes) -> bytes:
    """Of an image among all."""
    return hashlib.sha256(data).digest()
