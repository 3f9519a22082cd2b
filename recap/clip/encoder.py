"""A CLIP's features of images and texts, for evaluations. Each rank encodes a part, and all ranks get all features."""

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
"""Returns an image's bytes; called only when they are needed."""


class Features:
    """Computes features of length 1.

    Args:
        module: an `Objective`. It may be sharded, so every rank calls it equally often.
        size: pixels of an image's side. context: the most tokens of a text.
        prefix: the source token put before texts, where the model was trained with such tokens.
        between: called after each batch, equally often on every rank.
        group: gloo group of the ranks that share the work; None: all ranks.
        preprocessing: geometry of images; None: this toolkit's. The module itself normalises pixels.
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
        """(features float [N, D], reasons by number of the images that cannot be read; their rows are meaningless)."""
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
        """Features float [N, D] of images. UserError, on every rank, for an image that cannot be read."""
        features, failed = self.readable(pictures, names)
        if failed:
            raise UserError(f"evaluate: {next(iter(failed.values()))}")
        return features

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, float]:
        """(features float [M, D] of texts, the share of texts that were cut to the context)."""

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
        """The features of `count` inputs, in order. `ready` makes a batch of the inputs with these numbers. A rank that
        has fewer batches than others encodes the first input again."""
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
    """Features of an exported model, or of another CLIP that `recap.clip.weights.opened` opens."""

    def __init__(self, folder: str | Path, device: str = "cpu", batch: int = 256, prefix: str | None = None) -> None:
        model, config, size = opened(folder)
        made = of_folder(folder, config, size)
        module = Objective(model, LossConfig(), made.mean, made.std).to(device).eval()
        super().__init__(module, Tokens(config), size, device=device, batch=batch, prefix=prefix, preprocessing=made)
