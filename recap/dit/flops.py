"""Floating-point operations of a DiT's training, for MFU."""

from __future__ import annotations

from functools import cached_property

from recap.dit.settings import DitConfig
from recap.dit.text_encoder import TextEncoder
from recap.dit.vae import Space, encoding_flops


class Flops:
    """FLOPs of one image and its text: forward and backward through the transformer, forward through the text encoder
    and the VAE where they run during the training.

    Args:
        side: height and width of the latents.
    """

    def __init__(self, config: DitConfig, space: Space, side: int, text_encoder: TextEncoder) -> None:
        self._config, self._channels, self._side, self._text = config, space.channels, side, text_encoder

    def image(self, text: int) -> float:
        """FLOPs of one image. text: tokens of its text, including padding. Two for each multiply-add, and twice as many
        in the backward pass, except where the input needs no gradient."""
        shape, texts = self._config.model.shape, self._text.width
        width, patches = shape.width, (self._side // shape.patch) ** 2
        block = 4 * width**2 * patches + 2 * patches**2 * width  # self-attention of the patches
        block += 2 * width**2 * (patches + text) + 2 * patches * text * width  # cross-attention to the text
        block += 8 * width**2 * patches
        outputs = self._channels * (2 if self._config.model.learned_sigma else 1)
        ends = patches * shape.patch**2 * outputs * width + 7 * width**2 + text * width**2
        without = patches * shape.patch**2 * self._channels * width + 256 * width + text * texts * width
        return 6.0 * (shape.layers * block + ends) + 4.0 * without + self._encoding(text)

    def _encoding(self, text: int) -> float:
        data = self._config.data
        states = 0.0 if data.embeddings else self._text.flops(text)
        return states + (0.0 if data.latents else self._vae)

    @cached_property
    def _vae(self) -> float:
        return encoding_flops(self._config.model.vae, self._config.model.image)
