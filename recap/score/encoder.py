"""The features of a batch of rows under a CLIP, computed once for all scorers that ask for them."""

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
from recap.score.scorer import ScoreInput

_REMEMBERED = 4096  # features of images of bags that are kept from batch to batch


class ClipEncoder:
    """One opened CLIP. Features are float64 [D] of length 1.

    geometry: how an image becomes the square that the CLIP looks at.
    temperature: what the CLIP's training multiplies cosines by before a softmax.
    """

    def __init__(self, folder: str, precision: str, device: str) -> None:
        model, config, size = opened(folder)
        made = of_folder(folder, config, size)
        self.geometry, self.context = made.geometry, config.context
        self.module = Objective(model, LossConfig(), made.mean, made.std).to(device).eval()
        self.temperature = float(self.module.scale.detach())
        self.tokens, self._device = Tokens(config), torch.device(device)
        self._autocast_dtype = torch.bfloat16 if precision == "bf16" else None
        self._batch: Sequence[ScoreInput] | None = None
        self._images: list[np.ndarray | None] | None = None
        self._texts: dict[str, np.ndarray] = {}
        self._cut: dict[str, bool] = {}
        # Features of images in bags by the image's sha256, None for those that cannot be decoded.
        self._bag_features: OrderedDict[bytes, np.ndarray | None] = OrderedDict()

    @classmethod
    def shared(
        cls, opened: dict[tuple[str, str], ClipEncoder], folder: str, precision: str, device: str
    ) -> ClipEncoder:
        """The encoder of a folder and precision out of `opened`; opened first, and added there, where it is not in
        it."""
        if (folder, precision) not in opened:
            opened[folder, precision] = cls(folder, precision, device)
        return opened[folder, precision]

    def images(self, rows: Sequence[ScoreInput]) -> list[np.ndarray | None]:
        """The feature of each row's image, None where it has none. Computed once for the same list of rows."""
        self._start_batch(rows)
        if self._images is None:
            squares = [row.picture.squares[self.geometry] for row in rows if row.picture]
            made = iter(self._image_features(squares))
            self._images = [next(made) if row.picture else None for row in rows]
        return self._images

    def texts(self, rows: Sequence[ScoreInput]) -> tuple[dict[str, np.ndarray], dict[str, bool]]:
        """By text, for all texts and references of the rows: its feature, and whether the CLIP's context cut it."""
        self._start_batch(rows)
        self.features([text for row in rows for text in (*row.texts.values(), *row.references)])
        return self._texts, self._cut

    def features(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The feature of each of these texts, which are kept until the next batch."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            ids = self.tokens.ids([" ".join(text.split()) for text in new])
            self._cut |= {text: len(found) > self.context - 2 for text, found in zip(new, ids, strict=True)}
            self._texts |= dict(zip(new, self._encode({"ids": self.tokens.shape(ids)}), strict=True))
        return [self._texts[text] for text in texts]

    def bags(self, rows: Sequence[ScoreInput]) -> list[list[np.ndarray]]:
        """Features of the other images in each row's bag, without those that cannot be decoded.

        The rows of a bag are mostly in one batch, whose features are computed anyway. Features of bags that reach over
        two batches are kept, up to _REMEMBERED of them.
        """
        for row, own in zip(rows, self.images(rows), strict=True):
            if row.picture and own is not None:
                self._bag_features[_sha256(row.picture.data)] = own
        others = {_sha256(data): data for row in rows for data in row.bag or ()}
        squares = {name: self._square(data) for name, data in others.items() if name not in self._bag_features}
        readable = [name for name, square in squares.items() if square is not None]
        self._bag_features |= dict.fromkeys(squares)
        self._bag_features |= dict(
            zip(readable, self._image_features([squares[name] for name in readable]), strict=True)
        )
        found = [
            [one for data in row.bag or () if (one := self._bag_features[_sha256(data)]) is not None] for row in rows
        ]
        while len(self._bag_features) > _REMEMBERED:
            self._bag_features.popitem(last=False)
        return found

    def _square(self, data: bytes) -> np.ndarray | None:
        try:
            return decode(data, self.geometry)
        except BadImage:
            return None

    def _start_batch(self, rows: Sequence[ScoreInput]) -> None:
        """Forget the features of the batch before, where `rows` is another list than the last call's."""
        if self._batch is not rows:
            self._batch, self._images, self._texts, self._cut = rows, None, {}, {}

    def _image_features(self, squares: Sequence[np.ndarray | None]) -> np.ndarray:
        shown = [square for square in squares if square is not None]
        return self._encode({"images": np.stack(shown).transpose(0, 3, 1, 2)}) if shown else np.zeros((0, 0))

    @torch.inference_mode()
    def _encode(self, given: dict[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for name, a in given.items()}
        with torch.autocast(self._device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            out = self.module(tensors)
        return F.normalize(out.double(), dim=-1).cpu().numpy()


def _sha256(data: bytes) -> bytes:
    """sha256 of an image file."""
    return hashlib.sha256(data).digest()
