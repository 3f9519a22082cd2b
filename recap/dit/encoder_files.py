"""Reads the small files of a text encoder: its kind, and the digests that identify its embeddings. Torch-free."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from hpc.base.errors import UserError
from recap.model_files import file_digest

CLIP, T5 = ("clip", "clip_text_model"), ("t5", "umt5", "mt5")

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "added_tokens.json")


def part(folder: Path, name: str) -> Path:
    """The subfolder `name` of a diffusers pipeline's folder, or the folder itself where there is none."""
    return folder / name if (folder / name).is_dir() else folder


def make_encoder(shards: Sequence[str]) -> str:
    """The advice for a training on these tars that has no text encoder."""
    launch = ["python", "-m", "hpc.launch", "configs/clip/own_tars.yaml", f"data.shards=[{', '.join(shards)}]"]
    return (
        "Name that of a CLIP or a T5, or the exports/final of a CLIP that you train on the same tars:\n"
        + shlex.join(launch)
    )


def check_encoder(folder: str | Path, context: int) -> str:
    """The model type of a text encoder. UserError where it is neither a CLIP nor a T5, or takes fewer tokens."""
    file = part(Path(folder), "text_encoder") / "config.json"
    if not file.exists():
        raise UserError(f"config: `model.text_encoder`: {folder} is not the folder of a model (it has no config.json).")
    settings = json.loads(file.read_text())
    kind = str(settings.get("model_type", ""))
    if kind not in CLIP + T5:
        raise UserError(f"config: `model.text_encoder`: {folder} is a {kind or 'nameless'} model. Name a CLIP or a T5.")
    most = settings.get("text_config", settings).get("max_position_embeddings", 77)
    if kind in CLIP and context > most:
        raise UserError(f"config: `model.context`: {folder} takes {most} tokens, not {context}. Write at most {most}.")
    return kind


def text_encoder_digest(folder: str | Path) -> str:
    """16 hex digits of a hash of a text encoder's config, weights and tokenizer."""
    made = hashlib.sha256()
    for place in dict.fromkeys((part(Path(folder), "text_encoder"), part(Path(folder), "tokenizer"))):
        for path in sorted(place.glob("*")):
            if path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json", "spiece.model"):
                made.update(path.name.encode() + bytes.fromhex(file_digest(path)))
    return made.hexdigest()[:16]


def tokenizer_digest(folder: str | Path) -> str:
    """16 hex digits of a hash of all files of a tokenizer, with or without a tokenizer.json."""
    made, place = hashlib.sha256(), part(Path(folder), "tokenizer")
    for path in sorted(place.glob("*")):
        if path.name in _TOKENIZER_FILES:
            made.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()[:16]
