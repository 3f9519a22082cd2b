"""Whether a checkpoint can caption, as far as its small files tell: asked at launch, where no weights are loaded.

Torch-free, so that login nodes can ask. What needs the weights is found by `hpc.launch --check`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

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
        ValueError: what does not fit, where, and what to do.
        FileNotFoundError: there is no checkpoint.
    """
    if config.backend == "openai":
        return
    folder = model_folder(config.model)
    about = _read(folder / "config.json")
    _check_type(config, folder, about)
    _check_files(folder, config.sees)
    _check_template(config, folder)
    if config.sees and config.backend in ("native", "transformers") and about.get("model_type") == "llava":
        _check_sizes(folder, about)
    # Without torch this is a login node, and engines run in another environment.
    if importlib.util.find_spec("torch") and (lacking := packages(config, folder)):
        raise ValueError(lacking)


def packages(config: CaptionerConfig, folder: Path) -> str:
    """What is not installed here and is needed to load the model; "" where nothing is known to be missing."""
    for name in _NEEDS.get(config.backend, ()):
        if importlib.util.find_spec(name) is None:
            return f"captioner.backend={config.backend} needs the package {name!r}, which is not installed here."
    kind = str(_image_processor(folder).get("image_processor_type", "")).removesuffix("Fast")
    if not config.sees or config.backend == "vllm" or importlib.util.find_spec("torchvision") or _has_pillow_path(kind):
        return ""
    return (
        f"{folder}: its image processor {kind} has no Pillow path and needs the package 'torchvision', which is not "
        "installed here. Install the torchvision that fits this torch."
    )


def _has_pillow_path(kind: str) -> bool:
    """Whether transformers has an image processor without torchvision, told from its files; yes for unknown kinds."""
    spec = importlib.util.find_spec("transformers")
    models = Path(spec.origin).parent / "models" if spec and spec.origin else Path()

    def defined(name: str, files: str) -> bool:
        return any(f"class {name}(".encode() in path.read_bytes() for path in models.glob(files))

    return defined(f"{kind}Pil", "*/image_processing_pil_*.py") or not defined(kind, "*/image_processing_*.py")


def _image_processor(folder: Path) -> dict[str, Any]:
    found = _read(folder / "processor_config.json").get("image_processor")
    return found or _read(folder / "preprocessor_config.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}). Download the checkpoint again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object. Download the checkpoint again.")
    return found


def _check_type(config: CaptionerConfig, folder: Path, about: dict[str, Any]) -> None:
    kind = about.get("model_type")
    if not kind:
        raise ValueError(f"{folder}/config.json names no model_type: it is no checkpoint of transformers.")
    if "mm_vision_tower" in about:
        raise ValueError(
            f"{folder}: a checkpoint of the original LLaVA code (model type {kind!r}). Convert it: "
            f"python -m recap.sft.convert {folder} OUT --vision CLIP --tokenizer LLM"
        )
    if not config.sees:
        _check_text_type(config, folder, about)
        return
    if kind in _SILENT:
        raise ValueError(f"{folder}: a checkpoint of model type {kind!r} writes no text. Name a captioner.")
    if not any(name in about for name in _SIGHT):
        raise ValueError(f"{folder}: a checkpoint of model type {kind!r} sees no images. Name a captioner.")
    if config.backend == "native" and kind != "llava":
        raise ValueError(
            f"{folder}: a checkpoint of model type {kind!r}, and this backend reads 'llava'. "
            "Use captioner.backend=transformers."
        )


def _check_text_type(config: CaptionerConfig, folder: Path, about: dict[str, Any]) -> None:
    """A causal language model, or one inside a model that sees."""
    kind = about["model_type"]
    if kind in _SILENT or about.get("is_encoder_decoder"):
        raise ValueError(
            f"{folder}: a checkpoint of model type {kind!r} is no causal language model. Name one, or a captioner."
        )
    if config.backend == "native" and any(name in about for name in _SIGHT) and kind != "llava":
        raise ValueError(
            f"{folder}: a checkpoint of model type {kind!r}; of models that see, this backend reads the language model "
            "of 'llava'. Use captioner.backend=transformers."
        )


def _check_files(folder: Path, sees: bool) -> None:
    wanted = (("image processor", _PROCESSORS), ("tokenizer", _TOKENIZERS))
    for what, names in wanted if sees else wanted[1:]:
        if not any((folder / name).is_file() for name in names):
            raise ValueError(f"{folder} has no {what} ({', '.join(names)}). Copy it from the original checkpoint.")


def _check_template(config: CaptionerConfig, folder: Path) -> None:
    """The words around the prompt are the template's, or the checkpoint's, which has a place for an image."""
    if config.template is not None:
        return
    files = [path for name in ("chat_template.jinja", "chat_template.json") if (path := folder / name).is_file()]
    written = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    settings = [_read(folder / name) for name in ("processor_config.json", "tokenizer_config.json")]
    written += [str(template) for found in settings if (template := found.get("chat_template"))]
    if not written:
        raise ValueError(
            f"{folder} has no chat template: the words around the prompt are unknown. Set captioner.template, "
            r'e.g. "USER: {image}\n{prompt} ASSISTANT:" for LLaVA-1.5, or "{prompt}" for a plain model of texts.'
        )
    if config.sees and not any(map(_shows_images, written)):
        raise ValueError(
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
    processor = _image_processor(folder)
    edges: set[Any] = set()
    for name in ("size", "crop_size"):
        value = processor.get(name)
        edges |= {v for v in (value.values() if isinstance(value, dict) else [value]) if isinstance(v, int)}
    if isinstance(size, int) and (unequal := edges - {size}):
        raise ValueError(
            f"{folder}: the processor makes images of {sorted(unequal)} pixels, the vision tower takes {size}. "
            "Correct size and crop_size in preprocessor_config.json."
        )
