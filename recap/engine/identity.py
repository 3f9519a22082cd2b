"""What makes a captioner's output: digests of its files, and the semantic part of its settings. Torch-free.

Digests of large files are cached by path, size and modification time, so that they are computed once.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from recap.engine.settings import CaptionerConfig, is_execution
from recap.model_files import model_identity


def captioner_identity(config: CaptionerConfig, cache: Path | None = None) -> dict[str, Any]:
    """What makes the captions: settings away from their defaults, and digests of the model's files.

    For a server (`backend: openai`) the weights cannot be seen: the name it serves them under stands for
    them.
    """
    default = CaptionerConfig()
    found: dict[str, Any] = {}
    for item in fields(CaptionerConfig):
        value = getattr(config, item.name)
        if not is_execution(CaptionerConfig, item.name) and value != getattr(default, item.name):
            found[item.name] = value
    if config.prompts:
        found["prompts"] = {name: _away_from_default(form) for name, form in sorted(config.prompts.items())}
        found.pop("prompt", None)  # `prompts` takes its place
    if config.backend != "openai":
        found["model"] = model_identity(config.model, cache)
    return found


def _away_from_default(form: Any) -> dict[str, Any]:
    default = asdict(type(form)())
    return {name: value for name, value in asdict(form).items() if value != default[name]}
