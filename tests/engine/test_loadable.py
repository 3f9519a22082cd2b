"""What a checkpoint's small files tell of it is said at launch, in the words of whoever must mend it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hpc import launch
from hpc.base.errors import Exit, UserError
from recap.engine import CaptionerConfig, loadable

DEMO = Path(__file__).resolve().parents[2] / "recap/demo/captioner"


def edit(name: str, **facts: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    return change


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def larger(folder: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace(": 64", ": 96"))


CASES = {
    "another type": (
        edit("config.json", model_type="qwen2_vl"),
        "model type 'qwen2_vl', and the native engine reads 'llava' (LLaVA-1.5: CLIP or SigLIP, and LLaMA). Take "
        "captioner.backend=transformers",
    ),
    "no captioner": (edit("config.json", model_type="clip"), "model type 'clip' writes no text"),
    "original LLaVA": (edit("config.json", mm_vision_tower="x"), "python -m recap.sft.convert"),
    "no type": (edit("config.json", model_type=""), "names no model_type"),
    "sizes": (larger, "the processor makes images of [96] pixels, the vision tower takes 64"),
    "no processor": (remove("processor_config.json", "preprocessor_config.json"), "has no image processor"),
    "no tokenizer": (remove("tokenizer.json"), "has no tokenizer"),
    "no template": (remove("chat_template.jinja"), "has no chat template"),
    "half a file": (lambda f: (f / "config.json").write_text('{"model'), "cannot be read as JSON"),
    "a language model": (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "sees no images"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_load_is_said_at_the_dry_run(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = CASES[case]
    model = shutil.copytree(DEMO, tmp_path / "model")
    change(model)
    config = "configs/caption/demo.yaml"
    assert launch.main([config, f"captioner.model={model}", f"runs={tmp_path}", "--dry-run"]) == Exit.USAGE
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "demo").exists()


def test_a_processor_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pillow path where there is one, and no word of videos; the package's name where there is none."""
    from transformers import AutoTokenizer

    from recap.engine.processor import load_processor

    find = loadable.importlib.util.find_spec
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|video_pad|>"]})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl", "vision_config": {}}')
    about = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    settings = CaptionerConfig(backend="transformers", model=str(tmp_path))
    with monkeypatch.context() as without:
        without.setattr(loadable.importlib.util, "find_spec", lambda n: None if n == "torchvision" else find(n))
        loadable.check(settings)
        sam = {**about, "image_processor_type": "Sam2ImageProcessor"}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(sam))
        with pytest.raises(
            UserError, match=r"processor \(Qwen2VLProcessor, Sam2ImageProcessor\) needs the package 'torchvision'"
        ):
            loadable.check(settings)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    if find("torchvision") is None:
        made = load_processor(tmp_path)(images=Image.new("RGB", (56, 56)), text="<|image_pad|>", return_tensors="pt")
        assert made["pixel_values"].shape == (16, 1176)
