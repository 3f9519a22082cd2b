"""Writes a fine-tuned model so that transformers, the caption job and vLLM can load it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from hpc.base.errors import UserError
from recap.sft import model as models
from recap.sft.settings import SftConfig
from recap.sft.templates import Renderer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Trained(Protocol):
    """What saving needs of a fine-tuning: the checkpoint that it started from, its config, and how it renders
    prompts."""

    folder: Path
    config: SftConfig
    processor: Any
    renderer: Renderer


def write(task: Trained, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write `folder` atomically: model, tokenizer, processors, chat template.

    Args:
        weights: full tensors of the trained parameters, by their names in `CaptionLoss`.
    """
    made = models.load(task.folder, task.config)
    missing = made.load_state_dict(weights, strict=False)
    if missing.unexpected_keys:
        raise UserError(f"export: parameters that the model has not: {missing.unexpected_keys[:3]}")
    models.merge_adapters(made.llava)
    making = folder.parent / f".tmp-{folder.name}-{os.getpid()}"
    end_captions(made.llava, task.processor.tokenizer, task.renderer.end)
    save(made.llava, task.processor, making, dtype_of(task), task.renderer.chat_template())
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)


def dtype_of(task: Trained) -> torch.dtype:
    """The export's dtype: the config's, or that of the checkpoint's own weights."""
    if task.config.dtype != "auto":
        return _DTYPES[task.config.dtype]
    file = sorted(task.folder.glob("*.safetensors"))[0]
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(next(iter(tensors.keys()))).dtype


def save(llava: LlavaForConditionalGeneration, processor: Any, folder: Path, dtype: torch.dtype, chat: str) -> None:
    """`save_pretrained` of model and processor, with the names of the tower's keys that vLLM expects."""
    folder.mkdir(parents=True, exist_ok=True)
    llava.to(dtype).save_pretrained(folder)
    processor.chat_template = chat
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # preprocessor_config.json, for older loaders
    if llava.config.vision_config.model_type == "clip_vision_model":
        for file in folder.glob("*.safetensors"):
            _spell_tower(file)
        _spell_index(folder / "model.safetensors.index.json")


def end_captions(llava: LlavaForConditionalGeneration, tokenizer: Any, end: int) -> None:
    """Set the tokens that end captions in the generation settings: the one that answers were trained to end with, and
    the end tokens that the model had already. The other settings are unchanged."""
    settings = llava.generation_config
    places = (settings, llava.config, llava.config.get_text_config(), tokenizer)
    named: Any = next((found for p in places if (found := getattr(p, "eos_token_id", None)) is not None), [])
    marks = {*tokenizer.added_tokens_decoder, tokenizer.eos_token_id}  # drops the line break of an earlier stage
    known = [token for token in (named if isinstance(named, list) else [named]) if token in marks]
    ends = list(dict.fromkeys([*known, end]))
    settings.eos_token_id = ends if len(ends) > 1 else end
    settings.pad_token_id = tokenizer.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True  # older checkpoints set a temperature without it, which transformers now refuses


def _spelled(name: str) -> str:
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def _spell_tower(file: Path) -> None:
    tensors = load_file(file)
    if any(_spelled(name) != name for name in tensors):
        save_file({_spelled(name): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _spell_index(file: Path) -> None:
    if file.exists():
        import json

        index = json.loads(file.read_text())
        index["weight_map"] = {_spelled(name): part for name, part in index["weight_map"].items()}
        file.write_text(json.dumps(index, indent=2))
