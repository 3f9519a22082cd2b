"""Reads and writes CLIP weights of this toolkit, transformers and open_clip.

Written folders can be opened by `open_clip.create_model_and_transforms("local-dir:FOLDER")` for both architectures, and
by `CLIPModel.from_pretrained(FOLDER)` for `hf`. All of these forms can be read, and OpenAI's weights in either
library's names.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from hpc.base.errors import UserError
from recap.clip.preprocessing import ours as preprocessing_of
from recap.clip.settings import LARGEST_LOGIT_SCALE, ClipModelConfig
from recap.clip.tokenizer_files import check_pooling
from recap.clip.towers import RecapClip, resample_positions, sincos_2d

if TYPE_CHECKING:
    from recap.clip.hf import HfClip
    from recap.clip.tokens import Tokens

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_HF_WEIGHTS = "model.safetensors"
BIAS = "logit_bias"
_NO_WEIGHTS = ("position_ids", "input_resolution", "context_length", "vocab_size")  # buffers in older files


def build(config: ClipModelConfig, image: int, eos: int, temperature: float = 0.07) -> RecapClip | HfClip:
    """A model with random weights, or with those of `model.start`, fitted to the resolution.

    Args:
        image: pixels of the image's side. eos: id of the end token.

    transformers is imported only for the `hf` architecture, which halves the time of a dry run for the other.
    """
    model: RecapClip | HfClip
    if config.architecture == "hf":
        from recap.clip.hf import HfClip

        model = HfClip(config, image, eos, temperature)
    else:
        model = RecapClip(config, image, temperature)
    if config.start:
        load(model, config, read(config.start), image, config.start)
    return model


# --- in -------------------------------------------------------------------------------------------


def read(folder: str | Path) -> dict[str, torch.Tensor]:
    """The tensors in a folder, or in a safetensors file, of any of the known forms. UserError where there are none."""
    return load_file(_file(folder))


def check_start(config: ClipModelConfig, image: int) -> None:
    """UserError unless the weights of `model.start` fit the model of this config. Only names and shapes are read."""
    file = _file(config.start)
    try:
        with safe_open(file, "numpy") as stored:
            shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"config: `model.start`: {file} cannot be read: {error}.") from error
    with torch.device("meta"):
        model: Any = build(replace(config, start=""), image, eos=1)
        target = model.model if config.architecture == "hf" else model
        _fitted(target, config, {name: torch.empty(shape) for name, shape in shapes.items()}, image, config.start)


def _file(folder: str | Path) -> Path:
    """The safetensors file of a folder, or the file itself."""
    path = Path(folder)
    files = [path] if path.suffix == ".safetensors" else [path / OPEN_CLIP_WEIGHTS, path / _HF_WEIGHTS]
    for file in files:
        if file.is_file():
            return file
    pickles = sorted(p.name for p in path.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    raise UserError(
        f"config: `model.start`: {folder} holds neither {OPEN_CLIP_WEIGHTS} nor {_HF_WEIGHTS}."
        + (f" {pickles[0]} is a pickle, which may run code: save it as safetensors first." if pickles else "")
    )


def load(model: Any, config: ClipModelConfig, tensors: dict[str, torch.Tensor], image: int, source: str) -> None:
    """Load weights of any known form into a model, with positions resampled to its resolution. UserError where they do
    not fit. source: the weights' folder, for messages."""
    target = model.model if config.architecture == "hf" else model
    target.load_state_dict(_fitted(target, config, tensors, image, source))


def _fitted(
    target: Any, config: ClipModelConfig, tensors: dict[str, torch.Tensor], image: int, source: str
) -> dict[str, torch.Tensor]:
    """Weights of any known form by the names and in the shapes of a model. UserError where they do not fit."""
    tensors = {name: t.float() for name, t in tensors.items() if not name.endswith(_NO_WEIGHTS)}
    tensors.pop(BIAS, None)  # belongs to the objective
    hf_layout = any(name.startswith("vision_model.") for name in tensors)
    if config.architecture == "hf":
        tensors = tensors if hf_layout else from_open_clip(tensors)
        grid_name = "vision_model.embeddings.position_embedding.weight"
    else:
        tensors = to_open_clip(tensors) if hf_layout else tensors
        tensors = _with_text_prefix(tensors)
        grid_name = "visual.positional_embedding"
    if grid_name in tensors:
        tensors[grid_name] = _positions(tensors[grid_name], image // config.patch)
    ours = target.state_dict()
    tensors = {
        name: t.reshape(ours[name].shape) if t.numel() == 1 and name in ours else t for name, t in tensors.items()
    }
    if odd := sorted(set(ours) ^ set(tensors)):
        where = "is missing there" if odd[0] in ours else "is not in ours"
        raise UserError(
            f"config: `model.start`: {source} is not of model.architecture={config.architecture} or of other depth: "
            f"{odd[0]} {where} ({len(odd)} such)."
        )
    if wrong := [name for name in ours if ours[name].shape != tensors[name].shape]:
        name = wrong[0]
        raise UserError(
            f"config: `model.start`: {source}: {name} is {tuple(tensors[name].shape)} there, {tuple(ours[name].shape)} "
            "here. "
            "Set model.vision, model.text, model.context and model.vocabulary as they are there."
        )
    return tensors


def learned_bias(folder: str | Path) -> float | None:
    """The sigmoid loss's bias of trained weights; None where they were trained without one."""
    tensors = read(folder)
    return tensors[BIAS].item() if BIAS in tensors else None


def _positions(found: torch.Tensor, grid: int) -> torch.Tensor:
    """A vision tower's positions for grid x grid patches. For the same grid they are kept.

    This toolkit's sin-cos positions are computed again; all others (learned, or of other frequencies) are resampled.
    """
    old, width = math.isqrt(len(found) - 1), found.shape[1]
    if found.is_meta:
        return found.new_empty(grid**2 + 1, width)
    if old != grid and width % 4 == 0 and torch.allclose(found, sincos_2d(width, old), atol=1e-3):
        return sincos_2d(width, grid)
    return resample_positions(found, grid)


def _with_text_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with the text tower's names under `text.`, as in open_clip's `CustomTextCLIP` and here; open_clip's
    `CLIP` has them at the top level."""
    if any(name.startswith("text.") for name in tensors):
        return tensors
    top = ("visual.", "logit_scale", "logit_bias")
    return {name if name.startswith(top) else f"text.{name}": t for name, t in tensors.items()}


# --- between transformers' names and open_clip's --------------------------------------------------

_NAMES = [  # (transformers, open_clip)
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
]
_LAYER = [
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("self_attn.out_proj.", "attn.out_proj."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
]
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}


def to_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of transformers' CLIPModel by the names of open_clip's `CLIP`."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name in _TRANSPOSED:
            out[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif match := re.fullmatch(r"(.*)self_attn\.q_proj\.(weight|bias)", name):
            parts = [tensors[f"{match[1]}self_attn.{p}_proj.{match[2]}"] for p in "qkv"]
            out[_renamed(match[1], 0) + f"attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            out[_renamed(name, 0)] = tensor
    return out


def from_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of open_clip's `CLIP` (or OpenAI's) by the names of transformers' CLIPModel."""
    tensors = {name.removeprefix("text."): t for name, t in tensors.items()}
    back = {ours: theirs for theirs, ours in _TRANSPOSED.items()}
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name in back:
            out[back[name]] = tensor.T.contiguous()
        elif match := re.fullmatch(r"(.*)attn\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                out[_renamed(match[1], 1) + f"self_attn.{part}_proj.{match[2]}"] = piece.clone()
        else:
            out[_renamed(name, 1)] = tensor
    return out


def _renamed(name: str, source: int) -> str:
    for pair in _NAMES:
        if name.startswith(pair[source]):
            name = pair[1 - source] + name.removeprefix(pair[source])
            break
    if ".layers." in name or "resblocks." in name:
        for pair in _LAYER:
            name = name.replace(pair[source], pair[1 - source])
    return name


# --- out ------------------------------------------------------------------------------------------


def save(
    model: RecapClip | HfClip, config: ClipModelConfig, tokens: Tokens, image: int, folder: Path,
    bias: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Write a model with its tokenizer, for transformers (`hf` only) and open_clip.

    Args:
        bias: of the sigmoid loss, float []. open_clip's models have it; transformers' CLIPModel does not.
    """
    from recap.clip.hf import HfClip, clip_config

    folder.mkdir(parents=True, exist_ok=True)
    model_ = model.model if isinstance(model, HfClip) else model
    tensors = {n: t.detach().clone() for n, t in model_.state_dict().items() if not n.endswith("position_ids")}
    # Other libraries have a clamped scalar.
    tensors["logit_scale"] = tensors["logit_scale"].reshape(()).clamp(max=LARGEST_LOGIT_SCALE)
    preprocessing, tokenizer = preprocessing_of(config, image), tokens.tokenizer
    if isinstance(model, HfClip):
        tokenizer = tokens.for_transformers()
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing.for_transformers(), indent=2) + "\n")
        model.model.save_pretrained(folder, state_dict=dict(tensors))
        clip_config(config, image, tokens.eos).save_pretrained(folder)
        tensors = to_open_clip(tensors)
    if bias is not None:
        tensors[BIAS] = bias.detach().cpu().reshape(())
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / OPEN_CLIP_WEIGHTS)
    tokenizer.save_pretrained(folder)
    written = {
        "model_cfg": open_clip_model(config, tokens, image, bias),
        "preprocess_cfg": preprocessing.for_open_clip(),
    }
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(written, indent=2) + "\n")
    ours = {"model": {**vars(config), "start": "", "tokenizer": ""}, "image": image}
    (folder / "recap_clip.json").write_text(json.dumps(ours, indent=2) + "\n")


def opened(folder: str | Path) -> tuple[RecapClip | HfClip, ClipModelConfig, int]:
    """(model, config with its tokenizer, resolution in pixels) of a folder that `save` wrote, of the paper's
    architecture in open_clip's form (the released weights), or of a transformers CLIPModel (OpenAI's)."""
    from transformers import CLIPConfig

    from recap.clip.tokens import Tokens

    path = Path(folder)
    if (path / "recap_clip.json").is_file():
        ours = json.loads((path / "recap_clip.json").read_text())
        config = ClipModelConfig(**{**ours["model"], "tokenizer": str(path), "start": str(path)})
        image = ours["image"]
    elif (path / OPEN_CLIP_CONFIG).is_file():
        config, image = _of_open_clip(json.loads((path / OPEN_CLIP_CONFIG).read_text())["model_cfg"], path)
    elif (path / "config.json").is_file():
        config, image = _of_transformers(path)
    else:
        raise UserError(
            f"clip: {folder} is not a model that this toolkit wrote (no recap_clip.json in it), nor one of open_clip's "
            f"(no {OPEN_CLIP_CONFIG}) or transformers' (no config.json)."
        )
    tokens = Tokens(config)
    if config.architecture == "hf" and not (path / "recap_clip.json").is_file():
        check_pooling(path, CLIPConfig.from_pretrained(path).text_config.eos_token_id, tokens.tokenizer)
    model = build(config, image, tokens.eos)
    return model.eval(), config, image


def _of_open_clip(given: dict[str, Any], path: Path) -> tuple[ClipModelConfig, int]:
    """(config, resolution) of an open_clip config. UserError where it is not of the `recap` architecture."""
    vision, text = given["vision_cfg"], given["text_cfg"]
    ours_v = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    ours_t = {"no_causal_mask": True, "pool_type": "last"}
    if not (ours_v.items() <= vision.items() and ours_t.items() <= text.items()):
        raise UserError(
            f"clip: {path} is an open_clip model of another architecture than Recap-CLIP's (averaged patches, no "
            "causal mask). Use the same model in transformers' form."
        )
    heads = vision["width"] // vision.get("head_width", 64)
    config = ClipModelConfig(
        vision=f"{vision['width']}x{vision['layers']}x{heads}",
        text=f"{text['width']}x{text['layers']}x{text['heads']}",
        embed=given["embed_dim"],
        patch=vision["patch_size"],
        context=text["context_length"],
        vocabulary=text["vocab_size"],
        tokenizer=str(path),
        start=str(path),
    )
    return config, vision["image_size"]


def _of_transformers(path: Path) -> tuple[ClipModelConfig, int]:
    """(config, resolution) of a transformers CLIPModel."""
    from transformers import CLIPConfig

    given = json.loads((path / "config.json").read_text())
    if given.get("model_type") != "clip":
        raise UserError(f"clip: {path} is a {given.get('model_type')} of transformers, not a CLIPModel.")
    made = CLIPConfig.from_pretrained(path)
    vision, text = made.vision_config, made.text_config
    for name, tower in (("vision", vision), ("text", text)):
        if tower.intermediate_size != 4 * tower.hidden_size or tower.hidden_act not in ("gelu", "quick_gelu"):
            raise UserError(
                f"clip: {path}: its {name} tower has layers of {tower.intermediate_size} with {tower.hidden_act}; only "
                f"{4 * tower.hidden_size} with gelu or quick_gelu is known here."
            )
    config = ClipModelConfig(
        architecture="hf",
        vision=f"{vision.hidden_size}x{vision.num_hidden_layers}x{vision.num_attention_heads}",
        text=f"{text.hidden_size}x{text.num_hidden_layers}x{text.num_attention_heads}",
        embed=made.projection_dim,
        patch=vision.patch_size,
        context=text.max_position_embeddings,
        vocabulary=text.vocab_size,
        activation=vision.hidden_act,
        tokenizer=str(path),
        start=str(path),
    )
    return config, vision.image_size


def open_clip_model(
    config: ClipModelConfig, tokens: Tokens, image: int, bias: torch.Tensor | None = None
) -> dict[str, Any]:
    """The config of a model in open_clip's form."""
    vision, text = config.vision_tower, config.text_tower
    recap = config.architecture == "recap"
    vision_cfg: dict[str, Any] = {
        "image_size": image, "layers": vision.layers, "width": vision.width, "head_width": vision.width // vision.heads,
        "patch_size": config.patch,
    }  # fmt: skip
    text_cfg: dict[str, Any] = {
        "context_length": config.context, "vocab_size": config.vocabulary, "width": text.width, "heads": text.heads,
        "layers": text.layers, "hf_tokenizer_name": "in this folder",
    }  # fmt: skip
    if recap:
        vision_cfg |= {
            "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d",
        }  # fmt: skip
        text_cfg |= {"pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"strip_sep_token": True}}
    else:
        text_cfg |= {"pool_type": "eos", "eos_id": tokens.eos}
    made = {"embed_dim": config.dimension, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    made |= {"quick_gelu": True} if config.activation == "quick_gelu" else {}
    made |= {} if bias is None else {"init_logit_bias": bias.item()}  # without it, open_clip makes no such parameter
    return made | ({"custom_text": True} if recap else {})
