"""CLIP score: 100 max(cos, 0) of an image and its prompt, by any CLIP (Hessel et al. 2021, without its factor of 2.5).

torchmetrics' `CLIPScore` is the same, except that it applies max(., 0) to the mean. A CLIP of 77 tokens does not see
the ends of long prompts, for which a CLIP of a longer context (LongCLIP, Recap-CLIP) is needed; the share of prompts
that were cut is therefore reported beside every score.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

from hpc.base.errors import UserError
from recap.clip.encoder import Encoder, Picture
from recap.clip.tokenizer_files import check_pooling
from recap.clip.weights import OPEN_CLIP_CONFIG
from recap.data.images import BadImage
from recap.engine.checkpoint import Normalisation, geometry_of
from recap.engine.decode import decode
from recap.evaluate.intervals import Mean, bootstrap_mean


class ClipEncoder(Protocol):
    """Encodes images and texts. `recap.clip.encoder.Encoder` does it for this toolkit's models."""

    def images(self, pictures: Sequence[Picture], names: Sequence[str]) -> torch.Tensor:
        """Features [N, D] of length 1. UserError for an image that cannot be read."""

    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, float]:
        """Features [M, D] of length 1, and the share of texts that the token limit cut."""


@dataclass(frozen=True)
class Clip:
    """An opened CLIP. name: of its folder, or of its run. context: the most tokens of a text."""

    name: str
    folder: Path
    context: int
    encoder: ClipEncoder


def open_clip(folder: str | Path, device: str = "cpu") -> Clip:
    """A CLIP of this toolkit, Recap-CLIP as released for open_clip, or one that `CLIPModel.save_pretrained` wrote.

    Raises:
        UserError: the folder holds no CLIP in one of these forms.
    """
    path = Path(folder).resolve()
    name = next(part for part in reversed(path.parts) if part not in ("exports", "final"))
    there = {file for file in ("recap_clip.json", OPEN_CLIP_CONFIG, "config.json") if (path / file).is_file()}
    if "recap_clip.json" in there or there == {OPEN_CLIP_CONFIG}:
        ours = Encoder(path, device)
        return Clip(name, path, ours.config.context, ours)
    if "config.json" in there:
        theirs = TransformersEncoder(path, device)
        return Clip(name, path, theirs.context, theirs)
    raise UserError(
        f"evaluate: {folder} is no CLIP: an export of this toolkit (recap_clip.json), Recap-CLIP in open_clip's form "
        f"({OPEN_CLIP_CONFIG}) or a folder of transformers (config.json, weights, tokenizer) is expected."
    )


class TransformersEncoder:
    """transformers' `CLIPModel`, with the preprocessing of its own processor (resize, centre crop, normalise)."""

    def __init__(self, folder: Path, device: str) -> None:
        if (kind := AutoConfig.from_pretrained(folder).model_type) != "clip":
            raise UserError(f"evaluate: {folder} is a model of type {kind!r}, not a CLIP.")
        try:
            model, loading = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            processor = AutoImageProcessor.from_pretrained(folder)
            self._geometry = geometry_of(processor, model.config.vision_config.image_size, None)
        except (OSError, ValueError, UserError) as error:
            raise UserError(f"evaluate: the CLIP in {folder} cannot be opened: {str(error)[:300]}") from error
        if loading["missing_keys"]:  # transformers would silently use random weights
            raise UserError(
                f"evaluate: the weights in {folder} lack {min(loading['missing_keys'])}: they are no CLIP's."
            )
        check_pooling(folder, model.config.text_config.eos_token_id, self.tokenizer)
        self.model, self.device = model.to(device).eval(), device
        self.context: int = model.config.text_config.max_position_embeddings
        self._normalise = Normalisation.of(processor)

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture], names: Sequence[str]) -> torch.Tensor:
        with ThreadPoolExecutor(4) as pool:
            pixels = torch.stack(list(pool.map(self._pixels, pictures, names))).to(self.device)
        pooled = self.model.vision_model(pixel_values=self._normalise(pixels, torch.float32)).pooler_output
        return F.normalize(self.model.visual_projection(pooled).float(), dim=-1).cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> tuple[torch.Tensor, float]:
        whole = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        ids = self.tokenizer(
            list(texts), truncation=True, max_length=self.context, padding=True, return_tensors="pt"
        ).to(self.device)
        pooled = self.model.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).pooler_output
        features = F.normalize(self.model.text_projection(pooled).float(), dim=-1).cpu()
        return features, sum(count > self.context for count in whole) / max(len(texts), 1)

    def _pixels(self, picture: Picture, name: str) -> torch.Tensor:
        try:
            return torch.tensor(decode(picture(), self._geometry))
        except BadImage as error:
            raise UserError(f"evaluate: {name}: {error}") from error


@dataclass
class ClipScores:
    """Scores of images against their prompts, added batch by batch. Only one number an image is kept.

    cut: how many prompts were longer than the CLIP's context.
    """

    clip: Clip
    scores: list[float] = field(default_factory=list)
    cut: float = 0.0

    def add(self, images: torch.Tensor, prompts: Sequence[str]) -> None:
        """Add a batch. images: features [N, D] of length 1, from `clip.encoder.images`. prompts: of these N images."""
        texts, cut = self.clip.encoder.texts(prompts)
        cosines = (images.double() * texts.double()).sum(-1)
        self.scores += (100 * cosines.clamp_min(0)).tolist()
        self.cut += cut * len(prompts)

    @property
    def mean(self) -> Mean:
        return bootstrap_mean(self.scores)

    @property
    def cut_share(self) -> float:
        """Share of prompts that are longer than the CLIP reads."""
        return self.cut / max(len(self.scores), 1)
