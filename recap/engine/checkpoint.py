"""What a captioner's checkpoint says besides its weights: image geometry, normalisation, prompts, end
tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.engine.processor import image_mark, image_text, load_processor
from recap.engine.prompts import PromptBook
from recap.engine.settings import CaptionerConfig
from recap.model_files import model_folder


@dataclass
class Checkpoint:
    """A LLaVA-class checkpoint, opened but without weights.

    eos: ids that end a caption.
    """

    folder: Path
    config: Any
    processor: Any
    tokenizer: Any
    geometry: Geometry
    normalise: Normalisation
    book: PromptBook
    eos: tuple[int, ...]


@dataclass
class TextCheckpoint:
    """A model of texts, opened but without weights: a causal language model, or the one inside a LLaVA checkpoint.

    causal: False where the language model is a part of one that sees images.
    context: positions that the model has; None where its configuration does not say.
    """

    folder: Path
    config: Any
    tokenizer: Any
    book: PromptBook
    eos: tuple[int, ...]
    causal: bool
    context: int | None


def open_text_checkpoint(settings: CaptionerConfig, weights: bool = True) -> TextCheckpoint:
    """Read the configuration and tokenizer of the checkpoint `settings.model`, for formats that show no image.

    Raises FileNotFoundError or UserError naming what is missing or does not fit.
    """
    folder = model_folder(settings.model, weights)
    config = AutoConfig.from_pretrained(folder)
    causal = config.get_text_config() is config
    chat: Any = AutoTokenizer.from_pretrained(folder) if causal else load_processor(folder)
    tokenizer = chat if causal else chat.tokenizer
    book = PromptBook(settings, tokenizer, chat, None, 0)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and book.bounded():
        longest = max(book.formats, key=book.length)
        if (needed := book.length(longest) + settings.max_tokens) > context:
            raise UserError(
                f"Format {longest!r} and its answer need {needed:,} tokens, and the context of {folder} has "
                f"{context:,}. Lower the budgets or max_tokens, or shorten the prompt."
            )
    return TextCheckpoint(folder, config, tokenizer, book, end_tokens(folder, config, tokenizer), causal, context)


@dataclass
class VisionCheckpoint:
    """Any model that sees images and writes, opened but without weights; its processor decides on pixels.

    book: its prompts hold the image's token once. context: positions that the model has; None where it does not say.
    """

    folder: Path
    config: Any
    processor: Any
    tokenizer: Any
    book: PromptBook
    eos: tuple[int, ...]
    context: int | None


def open_vision_checkpoint(settings: CaptionerConfig) -> VisionCheckpoint:
    """Read the configuration, processor and tokenizer of the checkpoint `settings.model`.

    Raises FileNotFoundError or UserError naming what is missing or does not fit.
    """
    folder = model_folder(settings.model)
    config = AutoConfig.from_pretrained(folder)
    processor = load_processor(folder, settings.image_processor)
    tokenizer = processor.tokenizer
    text = image_text(processor)
    mark = image_mark(processor, text)
    book = PromptBook(settings, tokenizer, processor, mark, int(mark is not None), text)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return VisionCheckpoint(
        folder, config, processor, tokenizer, book, end_tokens(folder, config, tokenizer), context
    )  # fmt: skip


def is_llava(folder: Path) -> bool:
    """Whether the checkpoint is a `LlavaForConditionalGeneration`, whose images are squares of one size."""
    return AutoConfig.from_pretrained(folder).model_type == "llava"


def open_checkpoint(settings: CaptionerConfig, weights: bool = True) -> Checkpoint:
    """Read the configuration, processor and tokenizer of the LLaVA checkpoint `settings.model`.

    Raises FileNotFoundError or UserError naming what is missing or does not fit.
    """
    folder = model_folder(settings.model, weights)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type != "llava":
        raise UserError(
            f"{folder}: a checkpoint of model type {config.model_type!r}, and this backend reads 'llava'. "
            "Use captioner.backend=transformers."
        )
    processor = load_processor(folder)
    tokenizer = processor.tokenizer
    geometry = geometry_of(processor.image_processor, config.vision_config.image_size, settings.geometry)
    book = PromptBook(settings, tokenizer, processor, processor.image_token, image_tokens(config))
    return Checkpoint(
        folder=folder,
        config=config,
        processor=processor,
        tokenizer=tokenizer,
        geometry=geometry,
        normalise=Normalisation.of(processor.image_processor),
        book=book,
        eos=end_tokens(folder, config, tokenizer),
    )


def image_tokens(config: Any) -> int:
    """Number of image features; the class token is dropped by the "default" strategy."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    class_token = 1 if vision.model_type == "clip_vision_model" else 0
    return patches + class_token - (1 if config.vision_feature_select_strategy == "default" else 0)


def end_tokens(folder: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a caption, as `generate` finds them: of generation_config.json, the model or the
    tokenizer."""
    found: Any = None
    if (folder / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(folder).eos_token_id
    for place in (config, config.get_text_config(), tokenizer):
        found = getattr(place, "eos_token_id", None) if found is None else found
    if found is None:
        raise UserError(f"{folder}: no end token is named. Set eos_token_id in generation_config.json.")
    return tuple(found) if isinstance(found, list | tuple) else (int(found),)


class Normalisation:
    """8-bit pixels to the numbers that the vision tower takes, bit for bit as transformers computes them.

    transformers multiplies in float64, rounds to float32, then subtracts and divides in float32. A division
    by 1 / scale in float32 alone is faster; it is used where it gives the same for all 256 levels (it does
    for 1 / 255).
    """

    def __init__(self, scale: float, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = scale
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))
        levels = torch.arange(256, dtype=torch.uint8)
        self.divisor: float | None = None
        if torch.equal(levels.float() / (1 / scale), (levels.double() * scale).float()):
            self.divisor = 1 / scale

    @staticmethod
    def of(image_processor: Any) -> Normalisation:
        """What a transformers image processor does after cropping."""
        scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        if not image_processor.do_normalize:
            return Normalisation(scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return Normalisation(scale, image_processor.image_mean, image_processor.image_std)

    def __call__(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 [n, H, W, 3] -> `dtype` [n, 3, H, W], on the pixels' device."""
        if self.mean.device != pixels.device:
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        pixels = pixels.permute(0, 3, 1, 2)
        if self.divisor is None:
            x = (pixels.double() * self.scale).float()
        else:
            x = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(self.divisor)
        return x.sub_(self.mean).div_(self.std).to(dtype)


def geometry_of(image_processor: Any, size: int, wanted: str | None) -> Geometry:
    """The square that the processor makes, or the one that the settings ask for.

    Raises UserError where the processor makes no square of `size` pixels, or does more than is known here.
    """
    _check_steps(image_processor)
    mean = image_processor.image_mean if image_processor.do_normalize else (0.0, 0.0, 0.0)
    red, green, blue = (int(value * 255) for value in np.broadcast_to(mean, 3))
    edges = {name: int(edge) for name, edge in dict(image_processor.size or {}).items() if edge}
    mode, whole, made = "squash", _whole(image_processor, edges), set(edges.values())
    if _pads_to_square(image_processor):
        mode, whole = "pad", ()
    elif image_processor.do_center_crop:
        mode, made = "crop", set()
    elif edges.keys() != {"height", "width"} or not image_processor.do_resize:
        raise UserError(f"{_name(image_processor)} makes no squares: it neither resizes to two sides nor crops.")
    if image_processor.do_center_crop:
        made |= {int(edge) for edge in dict(image_processor.crop_size or {}).values() if edge}
    if unequal := made - {size}:
        raise UserError(
            f"The processor makes images of {sorted(unequal)} pixels, the vision tower takes {size}. "
            "Correct size and crop_size in preprocessor_config.json."
        )
    if wanted not in (None, mode):
        mode, whole = wanted, ()
    return Geometry(size, mode, (red, green, blue), int(image_processor.resample), () if whole == (size,) else whole)


def _whole(image_processor: Any, edges: dict[str, int]) -> tuple[int, ...] | None:
    """`Geometry.whole`. UserError for sizes that depend on the image in other ways."""
    if not image_processor.do_resize:
        return None
    if edges.keys() == {"shortest_edge"}:
        return (edges["shortest_edge"],)
    if edges.keys() == {"height", "width"}:
        return edges["height"], edges["width"]
    raise UserError(
        f"{_name(image_processor)} has the size {edges}: only shortest_edge, or height and width, are known here."
    )


def _check_steps(image_processor: Any) -> None:
    """UserError for a class of processors that does something else than resize, crop, rescale and normalise."""
    kind = type(image_processor)
    plain = [base for base in (PilBackend, TorchvisionBackend) if issubclass(kind, base)]
    changed = [step for step in _STEPS for base in plain if getattr(kind, step) is not getattr(base, step)]
    if not plain or (changed and kind.__name__ not in _LLAVA):
        raise UserError(
            f"{_name(image_processor)} is not known here: processors of LLaVA, and those that resize, crop, rescale "
            "and normalise and nothing else, are."
        )


def _pads_to_square(image_processor: Any) -> bool:
    """Others pad what they have made: squares of one size stay as they are."""
    return bool(getattr(image_processor, "do_pad", False)) and type(image_processor).__name__ in _LLAVA


def _name(image_processor: Any) -> str:
    return f"The processor {type(image_processor).__name__}"


_STEPS = ("_preprocess", "resize", "center_crop")
_LLAVA = ("LlavaImageProcessor", "LlavaImageProcessorPil")
