"""The reference engine: equal to `generate` on one image alone, whatever lies beside it in the batch."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from benchmarks.random_captioner import Shape, photo
from recap.engine import CaptionerConfig, PromptFormat, Request, load_engine
from tests.engine.conftest import drive

PADDED = Shape(pad=True)


def alone(folder: Path, data: bytes, prompt: str, max_tokens: int) -> str:
    """The caption by the documented use of transformers, nothing of ours in between."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=Image.open(io.BytesIO(data)), text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_captions_equal_plain_generate(tiny: Callable[..., Path]) -> None:
    for shape in (Shape(), PADDED):
        folder = tiny(shape)
        config = CaptionerConfig(model=str(folder), backend="transformers", max_tokens=12, micro_batch=4)
        engine = load_engine(config)
        requests = [Request(i, photo(i, 40 + i, 50), key=str(i)) for i in range(9)] + [Request(9, b"junk")]
        found = drive(engine, requests)
        engine.close()
        assert found[9].reason == "image: not an image" and not found[9].text
        for i in (0, 5, 8):
            assert found[i].text == alone(folder, requests[i].image or b"", config.prompt, 12)
            assert found[i].finish == ("length" if found[i].tokens == 12 else "stop")
        assert len({caption.text for caption in found.values()}) > 7


def test_generation_settings_of_the_checkpoint_are_not_used(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A repetition penalty there would change captions behind the back of this configuration's identity."""
    shutil.copytree(tiny(), tmp_path / "penalty")
    settings = GenerationConfig.from_pretrained(tiny())
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 2
    settings.save_pretrained(tmp_path / "penalty")
    texts = []
    for folder in (tiny(), tmp_path / "penalty"):
        for backend in ("transformers", "native"):
            engine = load_engine(CaptionerConfig(model=str(folder), backend=backend, max_tokens=20, decode_workers=0))
            texts.append(drive(engine, [Request(i, photo(i)) for i in range(8)]))
            engine.close()
    assert texts[0] == texts[1] == texts[2] == texts[3]


def test_neighbours_and_order_do_not_matter(tiny: Callable[..., Path]) -> None:
    forms = {"alt": PromptFormat("Improve {alt}.", alt_tokens=10), "plain": PromptFormat("Describe.")}
    config = CaptionerConfig(
        model=str(tiny()),
        backend="transformers",
        prompts=forms,
        max_tokens=10,
        micro_batch=4,
        decode_workers=0,
        decoding="sample",
        temperature=0.8,
        top_k=50,
    )
    requests = [Request(i, photo(i), texts={"alt": "red " * i}, key=f"k{i}") for i in range(10)]
    texts = []
    for order in (requests, requests[::-1], requests[3:5]):
        engine = load_engine(config)
        texts.append(drive(engine, order))
        engine.close()
    assert texts[0] == texts[1] and texts[2].items() <= texts[0].items()
    assert {caption.format for caption in texts[0].values()} == {"alt", "plain"}


def test_every_format_of_an_image(tiny: Callable[..., Path]) -> None:
    forms = {"long": PromptFormat("Tell me all."), "short": PromptFormat("Brief.", max_tokens=3)}
    config = CaptionerConfig(
        model=str(tiny()),
        backend="transformers",
        prompts=forms,
        formats="all",
        max_tokens=8,
        micro_batch=4,
        decode_workers=0,
    )
    engine = load_engine(config)
    found = drive(engine, [Request(i, photo(i), key=str(i)) for i in range(5)])
    engine.close()
    for caption in found.values():
        (short,) = caption.alternatives
        assert (caption.format, caption.tokens, short.format, short.tokens) == ("long", 8, "short", 3)
