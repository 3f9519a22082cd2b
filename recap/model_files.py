"""A model's files: where they lie, and the digest of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from hpc.base.errors import UserError

# Files beside the weights that change a caption.
_SETTINGS_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_WEIGHT_PATTERNS = ("*.safetensors",)


def model_identity(model: str | os.PathLike[str], cache: Path | None = None) -> dict[str, str]:
    """sha256 by file name of a checkpoint's weights, tokenizer, processor and configuration files.

    Args:
        model: a checkpoint folder, or a hub name whose files are already in the local Hugging Face cache.
        cache: where digests are kept; default: `recap/digests` in the user's cache directory.

    Raises:
        FileNotFoundError: no such folder, or no `config.json` or weights in it.
    """
    folder = model_folder(model)
    weights = sorted(path for pattern in _WEIGHT_PATTERNS for path in folder.glob(pattern))
    settings = [folder / name for name in _SETTINGS_FILES if (folder / name).is_file()]
    return {path.name: file_digest(path, cache) for path in sorted(weights + settings)}


def model_folder(model: str | os.PathLike[str], weights: bool = True) -> Path:
    """The folder that holds the checkpoint `model`: itself, or a snapshot in the local Hugging Face cache."""
    expected = "config.json and *.safetensors, as `save_pretrained` writes them"
    folder = Path(model)
    if not folder.is_dir():
        folder = _hub_snapshot(str(model)) or folder
    if not folder.is_dir():
        name = os.fspath(model)
        on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith(".")
        raise FileNotFoundError(
            f"Model {name!r} is neither a folder nor in the local Hugging Face cache. "
            f"A folder with {expected} is expected there. Correct captioner.model"
            + (f", or download it first (`hf download {name}`)." if on_hub else ".")
        )
    if not (folder / "config.json").is_file() or (weights and not any(folder.glob("*.safetensors"))):
        raise FileNotFoundError(
            f"Model folder {str(folder)!r} is no checkpoint: {expected} are expected there. Correct captioner.model."
        )
    return folder


def _hub_snapshot(name: str) -> Path | None:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    repository = hub / ("models--" + name.replace("/", "--"))
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    return repository / "snapshots" / reference.read_text().strip()


def file_digest(path: Path, cache: Path | None = None) -> str:
    """sha256 of a file, from the cache when its path, size and modification time are known there."""
    path = path.resolve()
    stat = path.stat()
    stamp = json.dumps([str(path), stat.st_size, stat.st_mtime_ns])
    entry = (cache or _user_cache()) / hashlib.sha256(stamp.encode()).hexdigest()
    try:
        known = json.loads(entry.read_text())
        if known["stamp"] == stamp:
            return known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not cached yet, or a damaged entry: computed and written anew
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _write_entry(entry, {"stamp": stamp, "sha256": digest})
    return digest


def weights_digest(weights: Path) -> str:
    """sha256 over those of the safetensors in a folder, in the order of their names; or over that of one file."""
    made = hashlib.sha256()
    for path in [weights] if weights.is_file() else sorted(weights.glob("*.safetensors")):
        made.update(bytes.fromhex(file_digest(path)))
    return made.hexdigest()


def unreadable(files: Callable[[], Iterable[Path]]) -> list[str]:
    """What a preflight says where a model's files cannot be listed (`files` raises) or read on this node; else []."""
    try:
        for path in files():
            with path.open("rb") as file:
                file.read(1)
    except (OSError, UserError) as error:
        return [f"model: {error}"]
    return []


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recap" / "digests"


def _write_entry(entry: Path, content: dict[str, str]) -> None:
    # A home that cannot be written (read-only containers) costs a recomputation, not the run.
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as file:
            json.dump(content, file)
        Path(file.name).replace(entry)
    except OSError:
        return
