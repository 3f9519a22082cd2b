"""Checks at launch, by the small files of the checkpoint, that a fine-tuning can start. No weights are read.
Torch-free. recap.sft.settings checks the config itself, recap.sft.tars the tars.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.engine import loadable
from recap.engine.settings import CaptionerConfig
from recap.model_files import model_folder
from recap.sft.settings import SftConfig
from recap.sft.templates import IMAGE, TEMPLATES

_ATTENTION = ("auto", "sdpa", "flash_attention_2", "flex_attention", "eager")


def check(config: SftConfig) -> None:
    """UserError for the first problem: what is wrong, where, and what to do."""
    _check_packages(config)
    if not config.model:
        _check_importable("make", config.make)
        return
    try:
        folder = model_folder(config.model)
        about = json.loads((folder / "config.json").read_text())
        if (kind := about.get("model_type")) not in ("llava", "llava_llama"):
            raise UserError(f"{folder}: model type {kind!r} cannot be fine-tuned; recap.sft.assemble makes a 'llava'.")
        loadable.check(CaptionerConfig(model=str(folder), template="{image}{prompt}"))
    except (FileNotFoundError, ValueError, UserError) as error:
        raise UserError(f"config: `model`: {error}") from error
    _check_tokenizer(config, folder)
    _check_length(config, about)


def _check_packages(config: SftConfig) -> None:
    near = difflib.get_close_matches(config.attention, _ATTENTION, 1, 0.75)
    if config.attention not in _ATTENTION and near:
        raise UserError(f"config: `attention`: {config.attention!r} is unknown. Did you mean {near[0]}?")
    if config.lora.rank and importlib.util.find_spec("peft") is None:
        raise UserError("config: `lora.rank`: peft is not installed. pip install peft, or set it to 0.")
    for name in ("data", "held_out"):
        for number, source in enumerate(getattr(config, name)):
            if source.kind == "world":
                _check_importable(f"{name}[{number}].path", source.path)


def _check_importable(where: str, path: str) -> None:
    """UserError where the module of a dotted path does not exist. It is not imported, since it may need torch."""
    module = path.rpartition(".")[0]
    try:
        found = bool(module) and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise UserError(f"config: `{where}`: {path!r} does not import: there is no module {module or path!r}.")


def _check_tokenizer(config: SftConfig, folder: Path) -> None:
    """UserError unless the tokenizer is a fast one, has a token for images, and one for the template's end of
    answers."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"config: `model`: {folder} has no tokenizer.json: only a fast tokenizer tells offsets.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"config: `model`: {file} cannot be read: {error}") from error
    settings = _marks(folder)
    image = settings.get("image_token") or IMAGE
    if tokenizer.token_to_id(image) is None:
        raise UserError(
            f"config: `model`: the tokenizer of {folder} has no token {image!r}, which stands for the image. "
            "recap.sft.assemble and recap.sft.convert add it."
        )
    _check_end(config.template, tokenizer, settings, folder)


def _check_end(template: str, tokenizer: Any, settings: dict[str, str], folder: Path) -> None:
    mark = TEMPLATES[template].assistant[1]
    if mark == "{eos}" and not (mark := settings.get("eos_token", "")):
        raise UserError(
            f"config: `template`: {template} closes answers with the tokenizer's eos_token, and that of {folder} names "
            "none. Add it to tokenizer_config.json."
        )
    word, closed = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", "a" + mark))
    if len(closed) != len(word) + 1:
        raise UserError(
            f"config: `template`: {template} closes answers with {mark!r}, which is no single token of {folder}. "
            f"Write another of {', '.join(TEMPLATES)}, or add the token to the checkpoint's tokenizer."
        )


def _marks(folder: Path) -> dict[str, str]:
    """The tokenizer's special tokens by name."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json", "processor_config.json"):
        path = folder / name
        for key, value in (json.loads(path.read_text()) if path.is_file() else {}).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _check_length(config: SftConfig, about: dict[str, Any]) -> None:
    """UserError unless a sample has room for an image and words, and the model's context for a sample."""
    vision, text = about.get("vision_config") or {}, about.get("text_config") or {}
    side, patch = vision.get("image_size"), vision.get("patch_size")
    if side and patch and (features := (side // patch) ** 2) >= config.max_tokens:
        raise UserError(
            f"config: `max_tokens`: {config.max_tokens} leaves no room for words: an image alone takes {features} "
            f"tokens. Write at least {features + 128}."
        )
    places = text.get("max_position_embeddings")
    if places and config.max_tokens > places:
        raise UserError(
            f"config: `max_tokens`: {config.max_tokens} is more than the {places} positions of the language model."
        )
