"""A scorer's model as files in a folder: their digests, and what its configuration says. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.model_files import file_digest

PRECISIONS = ("fp32", "bf16")
_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


def files_of(folder: str, key: str, what: str, *deeper: str) -> dict[str, str]:
    """sha256 by path in the folder of a model's weights, configs and tokenizer.

    Args:
        key: the config key that names the folder, for the error.
        what: which model is expected there, for the error.
        deeper: glob patterns of further files that count.

    Raises:
        UserError: there are no weights.
    """
    root = Path(folder)
    found = sorted({path for pattern in (*_FILES, *deeper) for path in root.glob(pattern)}) if folder else []
    if not any(path.suffix == ".safetensors" for path in found):
        raise UserError(
            f"config: `{key}`: {folder or 'empty'} is no model: a folder with *.safetensors is expected, {what}."
        )
    return {str(path.relative_to(root)): file_digest(path) for path in found}


def config_of(folder: str, key: str) -> dict[str, Any]:
    """The content of config.json. UserError where there is none."""
    return json_of(Path(folder) / "config.json", key)


def json_of(path: Path, key: str) -> Any:
    """A JSON file's content. UserError where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"config: `{key}`: {path} cannot be read ({error}). Copy the model's folder again.") from error


def check_kind(folder: str, key: str, ending: str) -> dict[str, Any]:
    """The config.json of a folder whose model class (`architectures`) ends in `ending`. UserError for another class."""
    found = config_of(folder, key)
    kinds = found.get("architectures") or ["a model without architectures"]
    if not any(str(kind).endswith(ending) for kind in kinds):
        raise UserError(f"config: `{key}`: {folder} holds {kinds[0]}, expected one that ends in {ending}.")
    return found


def check_precision(precision: str, key: str) -> None:
    """UserError where a scorer's precision is unknown. key: the scorer's place in the config."""
    if precision not in PRECISIONS:
        raise UserError(f"config: `{key}.precision`: {precision!r} is unknown. Write {' or '.join(PRECISIONS)}.")
