"""Any vision language model by its own processor and `generate`: tiny random checkpoints of the real classes."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.random_captioner import photo
from hpc import launch
from hpc.base.errors import Exit, UserError
from hpc.run.published import Published
from recap.caption.operator import CaptionConfig
from recap.engine import CaptionerConfig, PromptFormat, Request, load_engine, loadable, processor_files
from recap.engine.identity import captioner_identity
from recap.engine.interface import REFUSED
from recap.engine.processor import load_processor
from recap.engine.transformers_vision import TransformersVisionEngine
from tests.engine.conftest import drive
from tests.support import tiny_vlms

SIZES = [(48, 40), (48, 40), (60, 30), (30, 60), (48, 40), (48, 40), (48, 40), (160, 20), (33, 35)]
PROMPT = "Describe this."
TOKENS = 8


@pytest.fixture(scope="session")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tiny_vlms.make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


class Own:
    """A checkpoint by the documented use of transformers, nothing of ours in between."""

    def __init__(self, folder: Path, processor: Any = None) -> None:
        self.processor = processor or AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder)

    def text(self, data: bytes, prompt: str = PROMPT) -> str:
        parts = [{"type": "image", "image": Image.open(io.BytesIO(data))}, {"type": "text", "text": prompt}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        ids = self.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        found = ids[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(found, skip_special_tokens=True).strip()


def watched(config: CaptionerConfig, passes: list[torch.Size]) -> TransformersVisionEngine:
    """The engine, with the shape of each call of `generate` written down."""
    engine = load_engine(config)
    assert isinstance(engine, TransformersVisionEngine)
    plain = engine.model.generate
    engine.model.generate = lambda **inputs: passes.append(inputs["input_ids"].shape) or plain(**inputs)
    return engine


@pytest.mark.parametrize("name", tiny_vlms.MODELS)
def test_texts_equal_the_models_own_generate(name: str, vlm: Callable[[str], Path]) -> None:
    """In batches where shapes allow, images as the model's own processor makes them, and prompts of any length."""
    folder, own = vlm(name), Own(vlm(name))
    config = CaptionerConfig(model=str(folder), backend="transformers", prompt=PROMPT, max_tokens=TOKENS, micro_batch=4)
    requests = [Request(i, photo(i, *size), key=str(i)) for i, size in enumerate(SIZES)] + [Request(99, b"junk")]
    passes: list[torch.Size] = []
    engine = watched(config, passes)
    found = drive(engine, requests)
    assert type(engine.checkpoint.processor.image_processor) is type(own.processor.image_processor)
    engine.close()
    assert found.pop(99).reason == "image: not an image"
    assert len({caption.text for caption in found.values()}) > len(SIZES) / 2  # they depend on the image
    for request in requests[:-1]:
        assert found[request.id].text == own.text(request.image or b""), request.id
    # Five images are of one size: one pass of four rows and a part of another; never one pass an image.
    assert {shape[0] for shape in passes} == {4} and len(passes) < len(SIZES)

    config = CaptionerConfig(
        model=str(folder), backend="transformers", prompts={"alt": PromptFormat(PROMPT + " {alt}")},
        max_tokens=TOKENS, micro_batch=2,
    )  # fmt: skip
    engine = watched(config, [])
    texts = {0: "a red flag", 1: "a flag with a white star and stripes on it"}
    found = drive(engine, [Request(i, photo(i), {"alt": text}, str(i)) for i, text in texts.items()])
    engine.close()
    assert {i: caption.text for i, caption in found.items()} == {
        i: own.text(photo(i), f"{PROMPT} {text}") for i, text in texts.items()
    }


def test_neighbours_order_and_formats(vlm: Callable[[str], Path]) -> None:
    """Sampled texts of all formats: equal alone, in another order and among others."""
    config = CaptionerConfig(
        model=str(vlm("qwen3_vl")), backend="transformers", max_tokens=TOKENS, micro_batch=3, formats="all",
        prompts={"long": PromptFormat("Tell all: {alt}"), "short": PromptFormat("Brief.", max_tokens=3)},
        decoding="sample", temperature=0.8, top_k=50,
    )  # fmt: skip
    requests = [
        Request(i, photo(i, *SIZES[i]), {"alt": "red " * (9 * i)}, f"k{i}") for i in range(len(SIZES))
    ]  # fmt: skip
    texts = []
    for order in (requests, requests[::-1], requests[3:5]):
        engine = load_engine(config)
        texts.append(drive(engine, order))
        engine.close()
    assert texts[0] == texts[1] and texts[2].items() <= texts[0].items()
    for caption in texts[0].values():
        (short,) = caption.alternatives
        assert (caption.format, caption.tokens, short.format, short.tokens) == ("long", TOKENS, "short", 3)


def test_an_image_that_the_processor_refuses(vlm: Callable[[str], Path]) -> None:
    """Qwen's takes no ratio above 200: that image is skipped with its words, and the others are captioned. A prompt
    that no image fits is an error before the first."""
    config = CaptionerConfig(model=str(vlm("qwen2_5_vl")), backend="transformers", prompt=PROMPT, max_tokens=3)
    engine = load_engine(config)
    found = drive(engine, [Request(0, photo(0)), Request(1, photo(1, 1000, 4)), Request(2, photo(2))])
    engine.close()
    assert found[1].reason == REFUSED and "aspect ratio" in found[1].detail and not found[1].transient
    assert found[0].tokens == found[2].tokens == 3
    with pytest.raises(UserError, match=r"format '' holds the image token 3 times"):
        load_engine(CaptionerConfig(model=str(vlm("llava_next")), backend="transformers", prompt="<image> <image>"))


def test_the_pillow_class_on_request_is_part_of_the_identity(vlm: Callable[[str], Path]) -> None:
    folder = vlm("qwen2_5_vl")
    asked = CaptionConfig(captioner=CaptionerConfig(model=str(folder), backend="transformers", prompt=PROMPT)).captioner
    assert asked.image_processor == type(AutoProcessor.from_pretrained(folder).image_processor).__name__
    assert captioner_identity(asked)["image_processor"] == "Qwen2VLImageProcessor"
    config = CaptionerConfig(
        model=str(folder), backend="transformers", prompt=PROMPT, max_tokens=TOKENS,
        image_processor="Qwen2VLImageProcessorPil",
    )  # fmt: skip
    engine = load_engine(config)
    found = drive(engine, [Request(i, photo(i)) for i in range(3)])
    engine.close()
    own = Own(folder, load_processor(folder, "Qwen2VLImageProcessorPil"))
    assert type(own.processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert [found[i].text for i in range(3)] == [own.text(photo(i)) for i in range(3)]
    with pytest.raises(UserError, match=r"image_processor = 'Other'.*Qwen2VLImageProcessor"):
        load_processor(folder, "Other")


def test_llava_is_as_before(tiny: Callable[..., Path]) -> None:
    """No class of torchvision's enters its identity: this code makes its pixels."""
    for backend in ("native", "transformers"):
        config = CaptionConfig(captioner=CaptionerConfig(model=str(tiny()), backend=backend)).captioner
        assert config.image_processor is None and "image_processor" not in captioner_identity(config)


def words(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def dry_run(model: Path, runs: Path, *more: str) -> int:
    return launch.main(["configs/caption/demo.yaml", f"captioner.model={model}", f"runs={runs}", "--dry-run", *more])


def test_a_dry_run_names_the_backend_and_why(
    vlm: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("captioner.backend=transformers",)
    assert dry_run(vlm("qwen3_vl"), tmp_path, *own) == 0
    assert (
        "transformers: Qwen3VLForConditionalGeneration by its own generate, images by its own Qwen2VLImageProcessor"
        in words(capsys)
    )
    assert dry_run(vlm("qwen3_vl"), tmp_path) == Exit.USAGE
    assert "'qwen3_vl', and the native engine reads 'llava'" in (said := words(capsys))
    assert "captioner.backend=transformers" in said and "vllm" in said
    assert dry_run(vlm("qwen3_vl"), tmp_path, *own, "captioner.decode=fast") == Exit.USAGE
    assert "captioner.decode = 'fast': only LLaVA checkpoints take it" in words(capsys)

    molmo = shutil.copytree(vlm("qwen3_vl"), tmp_path / "molmo")
    about = json.loads((molmo / "config.json").read_text()) | {"model_type": "molmo", "auto_map": {}}
    (molmo / "config.json").write_text(json.dumps(about))
    assert dry_run(molmo, tmp_path, *own) == Exit.USAGE
    said = words(capsys)
    assert "has no class for model type 'molmo'" in said and "auto_map) is not run" in said and "backend=vllm" in said

    find = loadable.importlib.util.find_spec
    made = {name: vlm(name) for name in ("mistral3", "smolvlm", "gemma3")}  # while every package is there
    for name, package in (("mistral3", "torchvision"), ("smolvlm", "num2words"), ("smolvlm", "torchvision")):
        with monkeypatch.context() as without:
            without.setattr(
                processor_files.importlib.util, "find_spec", lambda n, p=package: None if n == p else find(n)
            )
            assert dry_run(made[name], tmp_path, *own) == Exit.USAGE
            said = words(capsys)
            assert f"needs the package '{package}', which is not installed here" in said and "[vlm]" in said
    with monkeypatch.context() as without:  # the others have a Pillow path, and its class is in the plan
        without.setattr(processor_files.importlib.util, "find_spec", lambda n: None if n == "torchvision" else find(n))
        assert dry_run(made["gemma3"], tmp_path, *own) == 0
        assert "images by its own Gemma3ImageProcessorPil" in words(capsys)


@pytest.mark.slow(ci=True)
def test_a_job_captions_with_it(vlm: Callable[[str], Path], tmp_path: Path) -> None:
    """Launched as a user does, in processes of its own: every text is the model's own."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, size in enumerate(SIZES):
            data = photo(i, *size)
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    arguments = [
        "configs/caption/demo.yaml", f"runs={tmp_path}", "captioner.backend=transformers",
        f"data.shards=[{tmp_path}/a.tar]",
        f"captioner.model={vlm('internvl')}", f"captioner.prompt={PROMPT}", f"captioner.max_tokens={TOKENS}",
    ]  # fmt: skip
    assert launch.main(arguments) == 0
    (shard,) = Published(tmp_path / "demo").shards
    found = Published(tmp_path / "demo").find(shard.id)
    assert found is not None
    own = Own(vlm("internvl"))
    assert {row["key"]: row["caption"] for row in found.table().to_pylist()} == {
        str(i): own.text(photo(i, *size)) for i, size in enumerate(SIZES)
    }
