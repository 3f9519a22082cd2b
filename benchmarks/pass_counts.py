"""What the engine's passes launch, move and compute, counted from the engine itself on fake CUDA tensors."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from benchmarks.caption_work import MAX_TOKENS, make_generator, make_work
from benchmarks.fake_cuda import Watch, fake_cuda
from benchmarks.random_captioner import Shape
from recap.engine.generator import Generator, Image, Text

CUDA = torch.device("cuda", 0)


@dataclass(frozen=True)
class Counts:
    """One pass. launches, moved (bytes), flop: by operator or kernel; flop of the Triton attentions is not in it."""

    launches: collections.Counter[str]
    moved: collections.Counter[str]
    flop: collections.Counter[str]


def count_passes(shape: Shape, micro_batch: int, slots: int, precision: str) -> dict[str, Counts]:
    """The passes `vision`, `prefill` (all of a fill that is not vision) and `step`; nothing is computed."""
    whole = mock.patch.object(transformers.PreTrainedModel, "to", lambda model, *_: model)
    with whole, fake_cuda() as watch, torch.inference_mode():
        work = make_work(shape, micro_batch, CUDA, torch.bfloat16)
        generator = make_generator(work, micro_batch, slots, precision)
        pixels = torch.zeros(work.pixels.shape, dtype=torch.uint8, device=CUDA)
        step = _watched(watch, generator._advance)
        encoder, normalise = generator.encoder, generator.normalise
        assert encoder is not None and normalise is not None, "a model of images"
        vision = _watched(watch, lambda: encoder(normalise(pixels, generator.dtype)))
        fill = _watched(watch, lambda: generator.fill(_images(generator, work.ids)))
    parts = zip((fill.launches, fill.moved, fill.flop), (vision.launches, vision.moved, vision.flop), strict=True)
    return {"vision": vision, "prefill": Counts(*(whole - part for whole, part in parts)), "step": step}


def _watched(watch: Watch, action: Callable[[], Any]) -> Counts:
    watch.clear()
    action()
    return Counts(watch.launches, watch.moved, watch.flop)


def _images(generator: Generator[int], ids: list[int]) -> list[Image[int]]:
    chances, side = torch.zeros(MAX_TOKENS), generator.image_size
    pixels = np.zeros((side, side, 3), np.uint8)
    return [Image(pixels, [Text(i, ids, 56, chances)]) for i in range(generator.shapes.micro_batch)]
