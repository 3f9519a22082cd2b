"""A CLIP's features of images and texts, for evaluations. Ranks encode a part each, and all get the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from hpc.base.errors import UserError
from recap.clip.losses import ranks
from recap.clip.objective import Objective
from recap.clip.preprocessing import Preprocessing, of_folder, ours
from recap.clip.settings import LossConfig
from recap.clip.tokens import Text, Tokens
from recap.clip.weights import opened
from recap.data.images import BadImage

Picture = Callable[[], bytes]
"""An image's bytes, when they are wanted."""


class Features:
    """Features of length 1, by a module that is trained or was.

    Args:
        module: an `Objective`, perhaps sharded: every rank calls it equally often.
        size: pixels of an image's side. context: tokens of a text.
        prefix: the source token that texts are read with, where the model was trained with them.
        between: called after each batch, equally often on every rank.
        group: ranks that share the work, of gloo; None: all.
        preprocessing: of images; None: this toolkit's. Its mean and deviation are the module's to know.
    """

    def __init__(
        self, module: nn.Module, tokens: Tokens, size: int, context: int = 0, *, device: Any = "cpu", batch: int = 256,
        prefix: str | None = None, between: Callable[[], None] = lambda: None, group: Any = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:  # fmt: skip
        self._module, self.tokens, self.config = module, tokens, tokens.config
        self.size, self.context = size, context or tokens.config.context
        self._preprocessing = preprocessing or ours(tokens.config, size)
        self.device, self.batch, self.prefix, self._between, self._group = device, batch, prefix, between, group

    def readable(self, pictures: Sequence[Picture], names: Sequence[str]) -> tuple[torch.Tensor, dict[int, str]]:
        """Features [N, D], and the images that cannot be read: number -> why. Their rows mean nothing."""
        failed: dict[int, str] = {}

        def pixels(number: int) -> np.ndarray:
            try:
                return self._preprocessing.pixels(pictures[number]())
            except (BadImage, OSError) as error:
                failed[number] = f"{names[number]}: {error}"
                return np.zeros((3, self.size, self.size), np.uint8)

        with ThreadPoolExecutor(4) as pool:

            def ready(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
                return {"images": torch.from_numpy(np.stack(list(pool.map(pixels, numbers))))}

            features = self._encoded(len(pictures), ready)
        if ranks()[1] > 1:
            gathered: list[Any] = [None] * ranks()[1]
            dist.all_gather_object(gathered, failed, group=self._group)
            failed = {number: why for part in gathered for number, why in part.items()}
        return features, dict(sorted(failed.items()))

    def images(self, pictures: Sequence[Picture], names: Sequence[str]) -> torch.Tensor:
        """Features [N, D]. UserError, on every rank, for an image that cannot be read."""
        features, failed = self.readable(pictures, names)
        if failed:
            raise UserError(f"evaluate: {next(iter(failed.values()))}")
        return features

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, float]:
        """Features [M, D], and the share of texts that the token limit cut."""

        def ready(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
            return {"ids": torch.from_numpy(self._ids([texts[n] for n in numbers])[0])}

        rank, world = ranks()
        total = torch.tensor(float(self._ids(texts[rank::world])[1]))
        if world > 1:
            dist.all_reduce(total, group=self._group)
        return self._encoded(len(texts), ready), total.item() / max(len(texts), 1)

    def _ids(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        return self.tokens.encode([Text(text, self.prefix) for text in texts], self.context)

    @torch.no_grad()
    def _encoded(self, count: int, ready: Callable[[Sequence[int]], dict[str, torch.Tensor]]) -> torch.Tensor:
        """All inputs' features, in their order. A rank whose part is used up encodes the first input once more."""
        rank, world = ranks()
        mine = range(count)[rank::world]
        parts = [torch.zeros(0, self.config.dimension)]
        for start in range(0, -(-count // world), self.batch):
            numbers = mine[start : start + self.batch]
            given = {name: value.to(self.device) for name, value in ready(numbers or [0]).items()}
            parts.append(self._module(given).float().cpu()[: len(numbers)])
            self._between()
        out = torch.cat(parts)
        if world > 1:
            gathered: list[Any] = [None] * world
            dist.all_gather_object(gathered, out.numpy(), group=self._group)
            out = torch.zeros(count, self.config.dimension)
            for number, features in enumerate(gathered):
                out[number::world] = torch.from_numpy(features)
        return F.normalize(out, dim=-1)


class Encoder(Features):
    """Features by an export of this toolkit, or a CLIP of others that `recap.clip.weights.opened` opens."""

    def __init__(self, folder: str | Path, device: str = "cpu", batch: int = 256, prefix: str | None = None) -> None:
        model, config, size = opened(folder)
        made = of_folder(folder, config, size)
        module = Objective(model, LossConfig(), made.mean, made.std).to(device).eval()
        super().__init__(module, Tokens(config), size, device=device, batch=batch, prefix=prefix, preprocessing=made)
