"""A checkpoint's processor for still images, where torchvision is installed and where it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoProcessor

from hpc.base.errors import UserError
from recap.engine.processor_files import VLM_EXTRA, lacking, processor_class
from recap.engine.prompts import question

_PROBE = "\ue00f"  # a private-use character: no template writes it


def load_processor(folder: Path, image_processor: str | None = None) -> Any:
    """transformers' processor. Without torchvision its Pillow path, and no part that is for videos alone.

    Args:
        image_processor: the class that must prepare the images; None: whichever transformers takes here.

    Raises:
        UserError: there is no Pillow path, a package is missing, or the class cannot be had here.
    """
    processor = _load(folder)
    if image_processor is None or (found := type(processor.image_processor).__name__) == image_processor:
        return processor
    backend = "pil" if image_processor.endswith("Pil") else "torchvision"
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    if (other := type(processor.image_processor).__name__) != image_processor:
        raise UserError(
            f"captioner.image_processor = {image_processor!r}: here transformers has {found} and {other} for {folder}. "
            f"Pixels of another class make other texts. Install what is missing ({VLM_EXTRA}), or name one of these."
        )
    return processor


def image_text(processor: Any) -> str:
    """What the chat template writes where an image stands (Qwen: an image's token between two others), as the processor
    expects it in a text; the image's token where there is no template, "" where there is none either.
    """
    if not getattr(processor, "chat_template", None):
        return str(getattr(processor, "boi_token", "") or getattr(processor, "image_token", "") or "")
    one, none = question(processor, _PROBE, 1), question(processor, _PROBE, 0)
    same = 0
    while same < min(len(one), len(none)) and one[same] == none[same]:
        same += 1
    return one[same : one.find(_PROBE, same)]


def image_mark(processor: Any, text: str) -> str | None:
    """The one token in `image_text` that stands for the image; None where none of the tokenizer's does."""
    known = processor.tokenizer.get_added_vocab()
    if (own := getattr(processor, "image_token", None)) and own in text and own in known:
        return str(own)
    return next((token for token in sorted(known, key=len, reverse=True) if token in text), None)


def _load(folder: Path) -> Any:
    try:
        return AutoProcessor.from_pretrained(folder)
    except ImportError as error:
        needed = lacking(folder)
        if importlib.util.find_spec("torchvision") and not needed:
            raise
        try:
            return _for_stills(_processor_class(folder)).from_pretrained(folder)
        except (ImportError, TypeError, ValueError) as again:
            raise UserError(
                f"{folder}: its processor needs the package {needed or 'torchvision'!r}, which is not installed here. "
                f"Install it ({VLM_EXTRA}), or let a server read the model (captioner.backend=openai)."
            ) from (again if isinstance(again, ImportError) else error)


def _processor_class(folder: Path) -> Any:
    """The class that the checkpoint names, or the one of its model type."""
    name = processor_class(folder)
    found = getattr(transformers, name, None) if name else None
    if found is None:
        raise UserError(f"{folder}: transformers has no processor {name!r}")
    return found


def _for_stills(whole: Any) -> Any:
    """The same processor without its video processor, which exists for torchvision only."""

    class Stills(whole):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if "video" not in name]

    Stills.__name__ = whole.__name__
    return Stills
