"""Writes a trained DiT as a folder that diffusers can run, and reads such folders.

    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained("runs/recap-dit-b4/exports/final")      # a PixArtAlphaPipeline
    pipeline("a red flag", guidance_scale=4, use_resolution_binning=False, clean_caption=False, max_sequence_length=77)

`max_sequence_length` is the training's `model.context`. A model of pixel space has no VAE: load its pipeline with
`vae=None`, and ask for `output_type="latent"`, which are then the pixels from -1 to 1. PixArt's pipeline ignores a
shift of latents, so that it decodes those of a VAE with one (Flux's, Stable Diffusion 3's) wrongly; this toolkit's
sampler does not. `recap_dit.json` in the folder holds what this sampler needs to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpc.base import atomic
from recap.dit.exported import ABOUT, facts
from recap.dit.sampling import scheduler_of
from recap.dit.settings import DitConfig
from recap.dit.text_encoder import TextEncoder
from recap.dit.vae import load_vae, vae_facts


def write(config: DitConfig, transformer: Any, folder: Path) -> None:
    """Write a pipeline's folder: transformer, text encoder, tokenizer, VAE, scheduler.

    The scheduler is DPM-Solver++, which works for both objectives; it does not use a learned variance.
    """
    from diffusers import PixArtAlphaPipeline

    model = config.model
    encoder = TextEncoder(model.text_encoder, model.context)
    vae = load_vae(vae_facts(model.vae), torch.float32) if model.vae else None
    scheduler = scheduler_of("dpm", config.objective.kind, model.learned_sigma)
    with _quiet():
        pipeline = PixArtAlphaPipeline(encoder.tokenizer, encoder.model, vae, transformer.eval(), scheduler)
        pipeline.save_pretrained(folder, safe_serialization=True)
    about = {
        "image": model.image, "context": model.context, "objective": config.objective.kind, "size": model.size,
        "learned_sigma": model.learned_sigma, "text": config.text.weights,
    }  # fmt: skip
    atomic.replace(folder / ABOUT, atomic.as_json(about))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress diffusers' warnings that the text encoder is not a T5, and that there is no VAE: both are intended."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@dataclass
class Exported:
    """An exported model. vae: folder of its VAE, "" for pixel space. facts: the content of recap_dit.json."""

    transformer: Any
    text_encoder: TextEncoder
    vae: str
    facts: dict[str, Any]


def read(folder: str | Path) -> Exported:
    """The exported model in a folder, on the CPU, in evaluation mode. UserError if there is none."""
    from diffusers import PixArtTransformer2DModel

    about = facts(folder)
    transformer = PixArtTransformer2DModel.from_pretrained(Path(folder) / "transformer", use_safetensors=True)
    vae = Path(folder) / "vae"
    encoder = TextEncoder(folder, about["context"])
    return Exported(transformer.eval(), encoder, str(vae) if (vae / "config.json").exists() else "", about)
