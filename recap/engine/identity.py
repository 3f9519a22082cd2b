"""What makes a captioner's output: digests of its files, and the semantic part of its settings. Torch-free.

Digests of large files are cached by path, size and modification time, so that they are computed once.
"""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from recap.engine.settings import CaptionerConfig, WriterConfig, is_execution
from recap.model_files import model_identity


def captioner_identity(config: CaptionerConfig, cache: Path | None = None) -> dict[str, Any]:
    """What makes the captions: settings away from their defaults, and digests of the model's files.

    Raises FileNotFoundError where these cannot be seen, and no name says what they are.
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
    return found | weights_identity(config, cache)


def weights_identity(config: WriterConfig, cache: Path | None = None) -> dict[str, Any]:
    """Digests of the model's files. Of servers that others have started they cannot be seen: the name they are served
    under, which is a setting, stands for them; so it does where a server that we start finds them elsewhere.

    Raises:
        FileNotFoundError: they are nowhere, and no name says what they are.
    """
    if config.backend == "openai" and not config.server.command:
        return {}
    try:
        return {"model": model_identity(config.model, cache)}
    except FileNotFoundError:
        is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", config.model) and not config.model.startswith(".")
        if config.backend != "openai" or not (config.served_model or is_name):
            raise
        return {} if config.served_model else {"model": config.model}


def _away_from_default(form: Any) -> dict[str, Any]:
    default = asdict(type(form)())
    return {name: value for name, value in asdict(form).items() if value != default[name]}
