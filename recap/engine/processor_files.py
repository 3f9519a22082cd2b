"""What a checkpoint's processor is made of: classes and packages, told from its small files and from transformers'
sources. Torch-free, so that login nodes can ask."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.engine.settings import WriterConfig
from recap.model_files import model_folder

VLM_EXTRA = "pip install --no-deps torchvision num2words, in torchvision's release for this torch (extra [vlm])"
_REQUIRES = re.compile(r"@requires\(backends=\(([^)]*)\)\)\s*$")
_SAID = re.compile(r"Package `(\w+)` is required")


def read_json(path: Path) -> dict[str, Any]:
    """A checkpoint's file of settings; {} where there is none. UserError where it is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). Download the checkpoint again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object. Download the checkpoint again.")
    return found


def image_settings(folder: Path) -> dict[str, Any]:
    """The settings of the image processor."""
    found = read_json(folder / "processor_config.json").get("image_processor")
    return found or read_json(folder / "preprocessor_config.json")


def image_processor_class(folder: Path) -> str:
    """The class that transformers takes here for the images: the checkpoint's, on Pillow where torchvision is not
    installed. "" where the files do not name one.
    """
    settings = image_settings(folder)
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    kind = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    # Without torch this is a login node: engines run in another environment, which has what they need.
    without = importlib.util.find_spec("torch") and not importlib.util.find_spec("torchvision")
    return f"{kind}Pil" if kind and without and _has_pillow_path(kind) else kind


def processor_class(folder: Path) -> str:
    """The class of the whole processor; "" where neither the files nor the model type name one."""
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if found := read_json(folder / name).get("processor_class"):
            return str(found)
    kind = read_json(folder / "config.json").get("model_type", "")
    return _names("PROCESSOR_MAPPING_NAMES").get(kind, "")


def model_class(kind: str) -> str | None:
    """The class of transformers that reads checkpoints of a type that see and write; "" where it has none. None where
    transformers is not installed here, or names its classes elsewhere."""
    names = _names("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
    return names.get(kind, "") if names else None


def lacking(folder: Path, image_processor: str = "") -> str:
    """The package that the processor needs and that is not installed here; "" where none is known to be missing.

    Args:
        image_processor: the class that images are prepared by; "": the one that transformers takes here.
    """
    needed = _named_packages(processor_class(folder))
    kind = image_processor or image_processor_class(folder)
    if kind and not kind.endswith("Pil") and (image_processor or not _has_pillow_path(kind)):
        needed.append("torchvision")
    return next((name for name in needed if importlib.util.find_spec(name) is None), "")


def settle(writer: WriterConfig, sees: bool) -> None:
    """Write down what the place of the launch decides: the model's absolute path, since a rerun may be typed in another
    folder, and the class that prepares its images, which is part of an identity."""
    if not writer.model or not Path(writer.model).is_dir():
        return
    writer.model = os.path.abspath(writer.model)
    if writer.image_processor is not None or writer.backend != "transformers" or not sees:
        return
    try:
        folder = model_folder(writer.model)
        if read_json(folder / "config.json").get("model_type") not in (None, "llava"):
            writer.image_processor = image_processor_class(folder) or None
    except (FileNotFoundError, UserError):
        return  # `recap.engine.loadable.check` says what is wrong


def _has_pillow_path(kind: str) -> bool:
    """Whether transformers has an image processor without torchvision; yes for unknown kinds."""
    return _source(f"{kind}Pil", "*/image_processing_pil_*.py") != "" or _source(kind, "*/image_processing_*.py") == ""


def _named_packages(processor: str) -> list[str]:
    """Packages that a processor's class asks for, in a decorator or when it is made. torchvision where it takes a video
    processor that it cannot be made without, since all of those are torchvision's."""
    if not processor or not (source := _source(processor, "*/processing_*.py")):
        return []
    above, _, body = source.partition(f"class {processor}(")
    decorator = _REQUIRES.search(above)
    found = re.findall(r'"(\w+)"', decorator[1]) if decorator else []
    takes = re.search(r"def __init__\((.*?)\):\n", body, re.S)
    if takes and re.search(r"\bvideo_processor\s*,", takes[1]):
        found.append("torchvision")
    return [name for name in (*_SAID.findall(body), *found) if name not in ("vision", "torch")]


@functools.lru_cache(maxsize=64)
def _source(name: str, files: str) -> str:
    """The module of transformers that defines a class; "" where none does."""
    for path in _transformers().glob(f"models/{files}"):
        text = path.read_bytes()
        if f"class {name}(".encode() in text:
            return text.decode("utf-8")
    return ""


@functools.lru_cache(maxsize=8)
def _names(mapping: str) -> dict[str, str]:
    """A mapping of transformers from model types to classes, as its source has it; {} where it is not found."""
    for path in sorted(_transformers().glob("models/auto/*.py")):
        _, found, rest = path.read_text(encoding="utf-8").partition(f"\n{mapping} = OrderedDict(")
        if found:
            return dict(re.findall(r'\("([^"]+)", "([^"]+)"\)', rest.partition("\n)")[0]))
    return {}


def _transformers() -> Path:
    spec = importlib.util.find_spec("transformers")
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")
