"""Checks that stored latents and embeddings are those that a training would compute itself: at launch for the first
value of a column, later for each value that is read. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from recap.dit.encoder_files import text_encoder_digest, tokenizer_digest
from recap.dit.latents import read_latent
from recap.dit.settings import DitConfig
from recap.dit.text_embeddings import encoder_width, read_states
from recap.dit.vae import Space, latent_space


@dataclass
class Stored:
    """Reads and checks stored values for a training. Digests are computed when they are first needed."""

    config: DitConfig

    def latent(self, blob: bytes, where: str) -> np.ndarray:
        """A latent, float16 [views, C or 2 C, h, w]. For a training that mirrors images, the second view is the
        mirrored one. where: the value's place, which a UserError begins with."""
        found, about = _read(read_latent, blob, where)
        space, model, objective = self._space, self.config.model, self.config.objective
        if about["vae"] != space.digest:
            raise UserError(
                f"{where}: its latent is of the VAE {about['vae']}, model.vae is {space.digest}. Name the VAE "
                "that made the column, or make the column again."
            )
        channels = space.channels * (2 if about["kind"] == "moments" else 1)
        side = model.image // space.factor
        if found.dtype != np.float16 or found.shape[1:] != (channels, side, side):
            raise UserError(
                f"{where}: its latent is {found.dtype} {found.shape[1:]}; model.image={model.image} asks "
                f"for float16 {(channels, side, side)}. Make the column for that size."
            )
        if objective.posterior == "sample" and about["kind"] == "mean":
            raise UserError(f"{where}: it holds means, not moments. Write objective.posterior=mean.")
        if objective.flip and len(found) < 2:
            raise UserError(
                f"{where}: it holds no mirrored images. Make it with flip=true, or write objective.flip=false."
            )
        return found

    def states(self, blob: bytes, where: str) -> np.ndarray:
        """float16 [tokens, width]. A text that was cut ends with the end token, so that states cut elsewhere are not
        those of sampling. where: as in `latent`."""
        states, about = _read(read_states, blob, where)
        context, made = self.config.model.context, int(about.get("context", 0)) or None
        if states.shape[1] != self._width or about["encoder"] != self._encoder:
            raise UserError(
                f"{where}: its states are of the encoder {about['encoder']} ({states.shape[1]} wide), "
                f"model.text_encoder is {self._encoder} ({self._width} wide). Name the encoder that made the column, "
                "or make it again."
            )
        if about.get("tokenizer", self._tokenizer) != self._tokenizer:
            raise UserError(
                f"{where}: its text was split by another tokenizer than model.text_encoder's. Make the column again."
            )
        if (made is not None and made != context) or len(states) > context:
            raise UserError(
                f"{where}: its texts were cut at {made or len(states)} tokens, model.context is {context}. "
                + (f"Write model.context={made}, or make" if made else "Make")
                + f" the column again with context={context} (configs/data/text_embeddings.yaml)."
            )
        return states

    @cached_property
    def _space(self) -> Space:
        return latent_space(self.config.model.vae)

    @cached_property
    def _width(self) -> int:
        return encoder_width(self.config.model.text_encoder)

    @cached_property
    def _encoder(self) -> str:
        return text_encoder_digest(self.config.model.text_encoder)

    @cached_property
    def _tokenizer(self) -> str:
        return tokenizer_digest(self.config.model.text_encoder)


def _read(reader: Callable[[bytes], tuple[np.ndarray, dict[str, str]]], blob: bytes, where: str) -> Any:
    """What `reader` makes of a value; its UserError names the place."""
    try:
        return reader(blob)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
