"""Config keys of a DiT training, and their checks. Torch-free: login nodes read and check them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from recap.data.samples import JoinedDataConfig, check_batch
from recap.text_policy import TextPolicyConfig
from recap.train.settings import TrainSettings

SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Width, layers and heads (Peebles and Xie, Scalable Diffusion Models with Transformers, table 1)."""

DIFFUSION_STEPS = 1000
"""Noise levels of the DDPM objective; flow times are scaled to the same range for the model."""


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    heads: int
    patch: int


@dataclass
class DitModelConfig:
    """Which model: `diffusers.PixArtTransformer2DModel`, text by cross-attention in every block."""

    size: str = semantic("B/4", "S | B | L | XL, or WIDTHxLAYERSxHEADS; then / and the patch's side in latents")
    image: int = semantic(256, "pixels of the image's side")
    vae: str = execution("", "folder of a VAE that diffusers loads; empty: the model works on pixels")
    text_encoder: str = execution("", "folder of a CLIP or a T5 that transformers loads, with its tokenizer")
    context: int = semantic(77, "tokens of a text at most; longer ones are cut (CLIP's own limit is 77)")
    learned_sigma: bool = semantic(False, "the model also predicts the variance, as in DiT (ddpm only)")
    start: str = execution("", "folder of transformer weights to go on from: a PixArtTransformer2DModel")

    @property
    def shape(self) -> Shape:
        name, _, patch = self.size.partition("/")
        if (name not in SIZES and not re.fullmatch(r"\d+x\d+x\d+", name)) or not re.fullmatch("[1-9][0-9]?", patch):
            raise UserError(
                f"config: `model.size`: {self.size!r} is unknown. Write {', '.join(SIZES)} or WIDTHxLAYERSxHEADS, "
                "then / and the patch, e.g. B/4 or 64x2x2/2."
            )
        width, layers, heads = SIZES[name] if name in SIZES else map(int, name.split("x"))
        return Shape(width, layers, heads, int(patch))


@dataclass
class ObjectiveConfig:
    """What is minimised."""

    kind: str = semantic("flow", "flow (rectified flow) | ddpm (noise prediction, linear schedule: the paper's)")
    time_mean: float = semantic(0.0, "flow: mean of the logit of t (Stable Diffusion 3's logit-normal)")
    time_std: float = semantic(1.0, "flow: its standard deviation; 0: t is uniform")
    min_snr: float = semantic(0.0, "ddpm: weight of a noise level is min(snr, this) / snr (Hang et al.); 0: all alike")
    text_dropout: float = semantic(0.1, "share of samples trained with an empty text, for guidance")
    posterior: str = semantic("sample", "sample | mean: what of the VAE's posterior is trained on")
    flip: bool = semantic(True, "half of the images are mirrored")


@dataclass
class DitDataConfig(JoinedDataConfig):
    """Tars and columns; with `latents`, no image is decoded."""

    latents: str | None = execution(None, "column of latents (recap.dit.latents), instead of encoding images live")
    embeddings: dict[str, str] = execution({}, "text column -> column of its embeddings (recap.dit.text_embeddings)")


@dataclass
class GridConfig:
    """Images that are drawn during training, always from the same noise."""

    prompts: list[str] = execution([], "texts of the rows; empty: no grid is drawn")
    guidance: float = execution(4.0, "guidance scale")
    columns: int = execution(4, "images of a prompt, from other noise")
    steps: int = execution(20, "steps of the solver")


@dataclass
class DitConfig:
    """Config keys of a DiT training."""

    model: DitModelConfig = field(default_factory=DitModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DitDataConfig = field(default_factory=DitDataConfig)
    text: TextPolicyConfig = field(default_factory=TextPolicyConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    micro_batch: int = execution(0, "images of a forward pass on a rank; 0: its whole part of the batch")
    train: TrainSettings = field(
        default_factory=lambda: TrainSettings(lr=1e-4, warmup=0.0, schedule="constant", clip=0.0)
    )


def check(config: DitConfig) -> None:
    """UserError for the first setting that cannot work: what is wrong, where, and what to do."""

    def refuse(key: str, why: str) -> None:
        raise UserError(f"config: `{key}`: {why}.")

    model, objective = config.model, config.objective
    shape = model.shape
    if shape.width % shape.heads or shape.width // shape.heads % 2:
        refuse("model.size", f"width {shape.width} does not divide among {shape.heads} heads of even size")
    if not model.text_encoder:
        refuse(
            "model.text_encoder", "missing. Name the folder of a CLIP or a T5 (configs/clip/own_tars.yaml makes one)"
        )
    if model.context < 3:
        refuse("model.context", f"{model.context} tokens leave no place for words. CLIP has 77")
    if objective.kind not in ("flow", "ddpm"):
        refuse("objective.kind", f"{objective.kind!r} is unknown. Write flow or ddpm")
    if objective.posterior not in ("sample", "mean"):
        refuse("objective.posterior", f"{objective.posterior!r} is unknown. Write sample or mean")
    if objective.kind == "flow" and (model.learned_sigma or objective.min_snr):
        refuse(
            "objective.kind", "model.learned_sigma and objective.min_snr belong to ddpm. Leave them out, or write ddpm"
        )
    if not 0 <= objective.text_dropout < 1:
        refuse("objective.text_dropout", f"{objective.text_dropout} is not a share from 0 to below 1")
    if config.data.latents and not model.vae:
        refuse("model.vae", "missing. Latents are decoded with it when images are drawn: name the VAE that made them")
    if config.micro_batch < 0:
        refuse("micro_batch", f"{config.micro_batch} is negative")
    if missing := [
        name for name in config.text.weights if config.data.embeddings and name not in config.data.embeddings
    ]:
        refuse("data.embeddings", f"column {missing[0]!r} of text.weights has none. Name it, or leave embeddings out")
    text = config.text
    if text.texts > 1:
        refuse("text.texts", f"{text.texts}: an image is drawn from one text. Write 1")
    if text.prefix or text.block.tokens:
        refuse("text", "prefix and block are CLIP's: leave them out")
    if config.data.embeddings and (text.sub_captions.columns or any("+" in name for name in text.weights)):
        refuse("data.embeddings", "are of whole texts: leave text.sub_captions and joined columns out")
    if bool(config.grid.prompts) != bool(config.train.evaluate_every):
        refuse("grid.prompts", "are drawn every train.evaluate_every samples. Write both, or neither")
    if config.train.workers > 1:
        refuse("train.workers", f"{config.train.workers}: each would read all windows. Write 1 and raise data.decoders")
    check_batch(config.data, config.train.batch)
