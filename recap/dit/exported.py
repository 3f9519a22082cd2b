"""Facts about an exported DiT that need no loading of the model. Torch-free, for login nodes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.model_files import file_digest

ABOUT = "recap_dit.json"

_PARTS = ("transformer", "text_encoder", "tokenizer", "vae")
_CONTENT = (".safetensors", ".model", ".txt")  # weights, vocabularies
_NAMED = ("config.json", "tokenizer.json", "vocab.json")


def facts(folder: str | Path) -> dict[str, Any]:
    """recap_dit.json: image (pixels), context (tokens), objective, learned_sigma, size, text (weights by column).

    UserError where there is none.
    """
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise UserError(
            f"config: `model`: {folder or 'nothing'} is no exported DiT (it has no {ABOUT}). Name the exports/final of "
            "a training of recap.dit."
        )
    return json.loads(path.read_text())


def identity(folder: str | Path) -> dict[str, str]:
    """Digests, by file, of everything that decides which images the model draws. UserError as for `facts`."""
    about = facts(folder)
    made = {key: str(about[key]) for key in ("objective", "context", "learned_sigma")}
    for path in files(folder):
        made[str(path.relative_to(folder))] = _config_digest(path) if path.name == "config.json" else file_digest(path)
    return made


def files(folder: str | Path) -> list[Path]:
    """Weights, configs and vocabularies of a pipeline's folder."""
    found = (path for part in _PARTS for path in sorted((Path(folder) / part).glob("*")))
    return [path for path in found if path.suffix in _CONTENT or path.name in _NAMED]


def _config_digest(path: Path) -> str:
    """Digest of a config.json without the notes of libraries: their versions, and where they loaded it from."""
    content = json.loads(path.read_text())
    told = {k: v for k, v in content.items() if not k.startswith("_") and k != "transformers_version"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
