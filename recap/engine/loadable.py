"""Whether a checkpoint can caption, as far as its small files tell: asked at launch, where no weights are loaded.

Torch-free, so that login nodes can ask. What needs the weights is found by `hpc.launch --check`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.engine.processor_files import (
    VLM_EXTRA,
    image_processor_class,
    image_settings,
    lacking,
    model_class,
    processor_class,
    read_json,
)
from recap.engine.settings import CaptionerConfig
from recap.model_files import model_folder

# Types that see images and write nothing, and those that write and see nothing: the likeliest wrong folders.
_SILENT = ("clip", "clip_vision_model", "siglip", "siglip2", "siglip_vision_model", "vit", "dinov2")
_SIGHT = ("vision_config", "vision_tower", "visual", "image_token_id", "image_token_index", "patch_size")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_NEEDS = {"native": ("torch", "transformers"), "transformers": ("torch", "transformers"), "vllm": ("vllm",)}


def check(config: CaptionerConfig) -> None:
    """Look at the files of the model that `config` names.

    Raises:
        UserError: what does not fit, where, and what to do.
        FileNotFoundError: there is no checkpoint.
    """
    if config.backend == "openai":
        return
    folder = model_folder(config.model)
    about = read_json(folder / "config.json")
    _check_type(config, folder, about)
    _check_files(folder, config.sees)
    _check_template(config, folder)
    if config.sees and config.backend in ("native", "transformers") and about.get("model_type") == "llava":
        _check_sizes(folder, about)
    # Without torch this is a login node, and engines run in another environment.
    if importlib.util.find_spec("torch") and (missing := packages(config, folder)):
        raise UserError(missing)


def packages(config: CaptionerConfig, folder: Path) -> str:
    """What is not installed here and is needed to load the model; "" where nothing is known to be missing."""
    for name in _NEEDS.get(config.backend, ()):
        if importlib.util.find_spec(name) is None:
            return f"captioner.backend={config.backend} needs the package {name!r}, which is not installed here."
    if not config.sees or config.backend == "vllm" or not (name := lacking(folder, config.image_processor or "")):
        return ""
    classes = processor_class(folder), config.image_processor or image_processor_class(folder)
    return (
        f"{folder}: its processor ({', '.join(filter(None, classes))}) needs the package {name!r}, which is not "
        f"installed here. Install it ({VLM_EXTRA})."
    )


def why(config: CaptionerConfig) -> str:
    """Why this backend suits the checkpoint, for people; "" where its files do not tell."""
    if config.backend == "openai":
        return "a server reads the model; its processor and template are the server's"
    try:
        folder = model_folder(config.model)
        kind = str(read_json(folder / "config.json").get("model_type"))
    except (FileNotFoundError, UserError):
        return ""
    if config.backend == "vllm":
        return f"vLLM reads {kind!r} with its own kernels"
    if not config.sees:
        return f"the language model of {kind!r}; no image is shown"
    if kind == "llava":
        fast = "the native engine's fused decoding" if config.backend == "native" else "plain generate, the reference"
        return f"a LLaVA checkpoint, by {fast}"
    prepared = config.image_processor or image_processor_class(folder)
    return f"{model_class(kind) or kind} by its own generate, images by its own {prepared}"


def _check_type(config: CaptionerConfig, folder: Path, about: dict[str, Any]) -> None:
    kind = about.get("model_type")
    if not kind:
        raise UserError(f"{folder}/config.json names no model_type: it is no checkpoint of transformers.")
    if "mm_vision_tower" in about:
        raise UserError(
            f"{folder}: a checkpoint of the original LLaVA code (model type {kind!r}). Convert it: "
            f"python -m recap.sft.convert {folder} OUT --vision CLIP --tokenizer LLM"
        )
    if not config.sees:
        _check_text_type(config, folder, about)
        return
    if kind in _SILENT:
        raise UserError(f"{folder}: a checkpoint of model type {kind!r} writes no text. Name a captioner.")
    known = model_class(kind)
    if not known and not any(name in about for name in _SIGHT):
        raise UserError(f"{folder}: a checkpoint of model type {kind!r} sees no images. Name a captioner.")
    if kind == "llava":
        return
    if config.backend == "native":
        best = (
            "transformers (right for any of them) or vllm (faster)" if known != "" else "vllm, or openai with a server"
        )
        raise UserError(
            f"{folder}: a checkpoint of model type {kind!r}, and the native engine reads 'llava' (LLaVA-1.5: CLIP or "
            f"SigLIP, and LLaMA). Take captioner.backend={best}; docs/captioners.md says which when."
        )
    if config.backend == "transformers" and known == "":
        own = " Code that comes with a checkpoint (auto_map) is not run." if "auto_map" in about else ""
        raise UserError(
            f"{folder}: transformers {importlib.metadata.version('transformers')} has no class for model type {kind!r}."
            f"{own} Take captioner.backend=vllm, or openai with a server that reads it; or a checkpoint that was "
            "converted for transformers (often the same name with -hf)."
        )
    if config.backend == "transformers":
        _check_own_images(config, folder, kind)


def _check_own_images(config: CaptionerConfig, folder: Path, kind: str) -> None:
    """Settings of pixels that only LLaVA checkpoints take: the others' processors decide."""
    for name, default in (("geometry", None), ("decode", "exact")):
        if (value := getattr(config, name)) != default:
            raise UserError(
                f"captioner.{name} = {value!r}: only LLaVA checkpoints take it. {folder} is of model type {kind!r}, "
                "whose processor decides. Leave it out."
            )


def _check_text_type(config: CaptionerConfig, folder: Path, about: dict[str, Any]) -> None:
    """A causal language model, or one inside a model that sees."""
    kind = about["model_type"]
    if kind in _SILENT or about.get("is_encoder_decoder"):
        raise UserError(
            f"{folder}: a checkpoint of model type {kind!r} is no causal language model. Name one, or a captioner."
        )
    if config.backend == "native" and any(name in about for name in _SIGHT) and kind != "llava":
        raise UserError(
            f"{folder}: a checkpoint of model type {kind!r}; of models that see, this backend reads the language model "
            "of 'llava'. Use captioner.backend=transformers."
        )


def _check_files(folder: Path, sees: bool) -> None:
    wanted = (("image processor", _PROCESSORS), ("tokenizer", _TOKENIZERS))
    for what, names in wanted if sees else wanted[1:]:
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{folder} has no {what} ({', '.join(names)}). Copy it from the original checkpoint.")


def _check_template(config: CaptionerConfig, folder: Path) -> None:
    """The words around the prompt are the template's, or the checkpoint's, which has a place for an image."""
    if config.template is not None:
        return
    files = [path for name in ("chat_template.jinja", "chat_template.json") if (path := folder / name).is_file()]
    written = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    settings = [read_json(folder / name) for name in ("processor_config.json", "tokenizer_config.json")]
    written += [str(template) for found in settings if (template := found.get("chat_template"))]
    if not written:
        raise UserError(
            f"{folder} has no chat template: the words around the prompt are unknown. Set captioner.template, "
            r'e.g. "USER: {image}\n{prompt} ASSISTANT:" for LLaVA-1.5, or "{prompt}" for a plain model of texts.'
        )
    if config.sees and not any(map(_shows_images, written)):
        raise UserError(
            f"{folder}: its chat template has no place for an image, and the formats show one. Set captioner.template, "
            r'e.g. "USER: {image}\n{prompt} ASSISTANT:", or image: false in the formats.'
        )


def _shows_images(template: str) -> bool:
    """Whether an image in a message changes what a chat template makes of it; True where that cannot be told here."""
    if "image" in template or importlib.util.find_spec("jinja2") is None:
        return True
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    text = {"type": "text", "text": "Describe it."}
    try:
        made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
        asked = [{"role": "user", "content": parts} for parts in ([{"type": "image"}, text], [text])]
        one, other = (made.render(messages=[message], add_generation_prompt=True) for message in asked)
    except (TemplateError, TypeError, ValueError):
        return True
    return one != other


def _check_sizes(folder: Path, about: dict[str, Any]) -> None:
    """The processor's squares are those that the vision tower takes."""
    size = (about.get("vision_config") or {}).get("image_size")
    processor = image_settings(folder)
    edges: set[Any] = set()
    for name in ("size", "crop_size"):
        value = processor.get(name)
        edges |= {v for v in (value.values() if isinstance(value, dict) else [value]) if isinstance(v, int)}
    if isinstance(size, int) and (unequal := edges - {size}):
        raise UserError(
            f"{folder}: the processor makes images of {sorted(unequal)} pixels, the vision tower takes {size}. "
            "Correct size and crop_size in preprocessor_config.json."
        )
