"""A checkpoint's processor for still images, where torchvision is installed and where it is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES


def load_processor(folder: Path) -> Any:
    """transformers' processor. Without torchvision its Pillow path, and no part that is for videos alone.

    Raises:
        ValueError: there is no Pillow path; the missing package is named.
    """
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError as error:
        if importlib.util.find_spec("torchvision"):
            raise
        try:
            return _for_stills(_processor_class(folder)).from_pretrained(folder)
        except (ImportError, TypeError, ValueError) as again:
            raise ValueError(
                f"{folder}: its processor has no Pillow path and needs the package 'torchvision', which is not "
                "installed here. Install the torchvision that fits this torch, or serve the model "
                "(captioner.backend=openai)."
            ) from (again if isinstance(again, ImportError) else error)


def _processor_class(folder: Path) -> Any:
    """The class that the checkpoint names, or the one of its model type."""
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        path = folder / file
        name = json.loads(path.read_text()).get("processor_class") if path.is_file() else None
        if name:
            break
    else:
        name = PROCESSOR_MAPPING_NAMES.get(json.loads((folder / "config.json").read_text())["model_type"])
    found = getattr(transformers, name or "", None)
    if found is None:
        raise ValueError(f"{folder}: transformers has no processor {name!r}")
    return found


def _for_stills(whole: Any) -> Any:
    """The same processor without its video processor, which exists for torchvision only."""

    class Stills(whole):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

    Stills.__name__ = whole.__name__
    return Stills
