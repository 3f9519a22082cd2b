"""A trained DiT as a folder that diffusers runs, and back.

    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained("runs/recap-dit-b4/exports/final")      # a PixArtAlphaPipeline
    pipeline("a red flag", guidance_scale=4, use_resolution_binning=False, clean_caption=False, max_sequence_length=77)

`recap_dit.json` beside it holds what our own sampler needs to know. A model of pixel space has no VAE: its pipeline is asked
for `output_type="latent"`, which are the pixels from -1 to 1.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hpc import atomic
from hpc.errors import UserError
from recap.dit.model import TextEncoder
from recap.dit.sampling import scheduler_of
from recap.dit.settings import DitConfig
from recap.dit.vae import load_vae, vae_facts

ABOUT = "recap_dit.json"


def write(config: DitConfig, transformer: Any, folder: Path) -> None:
    """The pipeline's folder: transformer, text encoder, tokenizer, VAE, scheduler.

    The scheduler is DPM-Solver++, which pipelines can run on both objectives (a learned variance is not used by it).
    """
    from diffusers import PixArtAlphaPipeline

    model = config.model
    encoder = TextEncoder(model.text_encoder, model.context)
    vae = load_vae(vae_facts(model.vae), torch.float32) if model.vae else None
    scheduler = scheduler_of("dpm", config.objective.kind, model.learned_sigma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Expected types for text_encoder": a CLIP does as well as a T5
        pipeline = PixArtAlphaPipeline(encoder.tokenizer, encoder.model, vae, transformer.eval(), scheduler)
        pipeline.save_pretrained(folder, safe_serialization=True)
    about = {
        "image": model.image, "context": model.context, "objective": config.objective.kind, "size": model.size,
        "learned_sigma": model.learned_sigma, "text": asdict(config.text)["weights"],
    }  # fmt: skip
    atomic.replace(folder / ABOUT, atomic.as_json(about))


@dataclass
class Exported:
    """What `read` finds. vae: its folder, "" for pixel space; facts: of recap_dit.json."""

    transformer: Any
    text_encoder: TextEncoder
    vae: str
    facts: dict[str, Any]


def facts(folder: str | Path) -> dict[str, Any]:
    """What is known of an exported model without loading it. UserError if there is none."""
    path = Path(folder) / ABOUT
    if not path.exists():
        raise UserError(f"model: {folder} has no {ABOUT}. Name the exports/final of a DiT training of this toolkit.")
    return json.loads(path.read_text())


def read(folder: str | Path) -> Exported:
    """An exported model, on the CPU, in evaluation mode."""
    from diffusers import PixArtTransformer2DModel

    about = facts(folder)
    transformer = PixArtTransformer2DModel.from_pretrained(Path(folder) / "transformer", use_safetensors=True)
    vae = Path(folder) / "vae"
    encoder = TextEncoder(folder, about["context"])
    return Exported(transformer.eval(), encoder, str(vae) if (vae / "config.json").exists() else "", about)
