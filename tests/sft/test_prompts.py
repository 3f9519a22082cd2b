"""A prompt's token ids are one thing: training, held-out evaluation, every engine, the evaluators and servers agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AddedToken, AutoProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from benchmarks.random_captioner import photo
from hpc import config as configs
from hpc.base.errors import UserError
from recap.engine.checkpoint import open_checkpoint
from recap.engine.interface import Request
from recap.engine.native import NativeEngine
from recap.engine.prompts import Encoder
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_vision import TransformersVisionEngine
from recap.evaluate.answers import Answerer
from recap.sft.saving import end_captions, save
from recap.sft.task import SftTask
from recap.sft.templates import IMAGE, TEMPLATES, Renderer
from tests.sft.conftest import tree

PROMPTS = [
    "Say it.",
    "Say it.\n",
    "  Say it.\n\n",
    "\tOne\n\ntwo ",
    "Öl? 漢字 \U0001f1e8\U0001f1f1",
    "a",
    "ASSISTANT:",
    "x" * 200,
]
MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def pieces(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of LLaMA-2's kind: characters, and a piece ▁ before each section (legacy, always) or text (first)."""
    letters = sorted({*"▁\n", *(chr(n) for n in range(33, 127)), *"Öl?漢字\U0001f1e8\U0001f1f1"})
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{c: n + 3 for n, c in enumerate(letters)}}
    merges = [("▁", "S"), ("▁S", "a"), (".", "\n"), ("▁", "r"), ("▁r", "e"), ("▁re", "d")]
    words |= {a + b: len(words) + n for n, (a, b) in enumerate(merges)}
    made = Tokenizer(models.BPE(words, merges, unk_token="<unk>", fuse_unk=True))
    if kind == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in [IMAGE, *MARKS]])
    return fast


def bytes_with(kind: str, captioner: Path) -> Any:
    """The tests' own tokenizer: as it is, without a BOS, or with LLaMA-3's BOS and an EOS put after every text."""
    tokenizer = AutoProcessor.from_pretrained(captioner).tokenizer
    if kind == "no bos":
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
        tokenizer.bos_token = None
    if kind == "llama-3":
        tokenizer.bos_token = MARKS[0]
        both = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (MARKS[0], "</s>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{MARKS[0]} $A </s>", special_tokens=both
        )
    return tokenizer


def exported(captioner: Path, tokenizer: Any, template: str, folder: Path) -> Renderer:
    """An export of that template; what training renders with."""
    processor = AutoProcessor.from_pretrained(captioner)
    processor.tokenizer = tokenizer
    llava = LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32)
    llava.config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    llava.resize_token_embeddings(max(len(tokenizer), 384))
    made = Renderer(tokenizer, template, 16, IMAGE)
    end_captions(llava, tokenizer, made.end)
    save(llava, processor, folder, torch.float32, made.chat_template())
    return made


def by_its_processor(folder: Path, prompt: str) -> list[int]:
    """What the engine for other models than LLaVA shows a model."""
    settings = CaptionerConfig(model=str(folder), prompt=prompt, max_tokens=1, backend="transformers")
    with closing(TransformersVisionEngine(settings, "cpu")) as engine:
        seen: dict[str, Any] = {}
        engine.model.generate = lambda **inputs: (seen.update(inputs), inputs["input_ids"])[1]
        engine.put(Request(0, photo(1), key="k"))
        assert not engine.poll(60.0)[0].reason
    return seen["input_ids"][0].tolist()


TOKENIZERS: dict[str, Callable[[Path], Any]] = {
    **{kind: partial(bytes_with, kind) for kind in ("bytes", "no bos", "llama-3")},
    **{kind: partial(lambda kind, folder: pieces(kind), kind) for kind in ("legacy", "first", "always")},
}


FIRST = {("llama-3", "llama-3"), ("vicuna", "legacy"), ("short", "first"), ("plain", "bytes"), ("short", "no bos")}
EVERY = [
    pytest.param(template, kind, marks=() if (template, kind) in FIRST else pytest.mark.slow)
    for template in TEMPLATES
    for kind in TOKENIZERS
]


@pytest.mark.parametrize(("template", "kind"), EVERY)
def test_the_same_ids_everywhere(captioner: Path, tmp_path: Path, template: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind](captioner)
    rendered = exported(captioner, tokenizer, template, tmp_path)
    answerer, processor = Answerer(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    server = Encoder(processor.tokenizer, processor.tokenizer.convert_tokens_to_ids(IMAGE), 16)
    server.opening = []  # vLLM's tokenises what the chat template wrote, and adds nothing
    for prompt in PROMPTS:
        made = rendered.render([("user", f"{IMAGE}\n{prompt}"), ("assistant", "red")], 1)
        trained = made.ids[: made.learned.index(True)]
        assert trained.count(rendered.tokenizer.bos_token_id) <= 1
        book = open_checkpoint(CaptionerConfig(model=str(tmp_path), prompt=prompt)).book
        assert book.prompt("").ids == trained, "native, transformers and vLLM engines"
        assert answerer.ids(prompt, 1) == trained, "evaluators"
        if not (template == "llama-3" and kind not in ("llama-3", "no bos")):  # a BOS that LLaMA-3's template lacks
            for content in ([{"type": "image"}, {"type": "text", "text": prompt}],
                            [{"type": "text", "text": prompt}, {"type": "image"}]):  # fmt: skip
                asked = [{"role": "user", "content": content}]
                text = processor.apply_chat_template(asked, add_generation_prompt=True)
                assert server(text).ids == trained, "servers"
    if kind == "legacy":
        assert by_its_processor(tmp_path, PROMPTS[1]) == book_ids(tmp_path, PROMPTS[1])


def book_ids(folder: Path, prompt: str) -> list[int]:
    return open_checkpoint(CaptionerConfig(model=str(folder), prompt=prompt)).book.prompt("").ids


def test_held_out_evaluation_sees_them_too(captioner: Path, conversations: Path) -> None:
    """What is evaluated in the loop is what is asked afterwards."""
    talk = [{"from": "human", "value": f"{IMAGE}\n Say it.\n"}, {"from": "gpt", "value": "red"}]
    (conversations / "one.json").write_text(json.dumps([{"id": "a", "image": "001.jpg", "conversations": talk}]))
    source = [{"kind": "llava", "path": str(conversations / "one.json"), "images": str(conversations / "images")}]
    changes = {"held_out": source, "train": {"evaluate_every": 8}, "template": "short"}
    config = configs.check(tree(captioner, conversations, **changes), "test")
    task = SftTask(config.work, captioner)
    assert task._held_out is not None
    micro = task._held_out.batch(0, 1, 0, 1).micro[0]
    folder = conversations / "out"
    exported(captioner, AutoProcessor.from_pretrained(captioner).tokenizer, "short", folder)
    asked = book_ids(folder, " Say it.\n")
    assert micro["input_ids"][0, : len(asked)].tolist() == asked and int(micro["at"][0]) == len(asked) - 1


def test_a_line_break_that_ends_captions_is_a_token_of_its_own(captioner: Path) -> None:
    """Template plain ends answers with a line break. LLaMA-3 has a token for a full stop and a line break: a caption
    that was trained to end with it would not end at all."""
    tokenizer = pieces("legacy")
    made = Renderer(tokenizer, "plain", 2, IMAGE)
    found = made.render([("user", IMAGE), ("assistant", "a red."), ("user", ""), ("assistant", "b.")], 1)
    assert tokenizer("red.\n", add_special_tokens=False)["input_ids"][-1] != made.end  # the token of both
    marks = [n for n, token in enumerate(found.ids) if token == made.end]
    assert len(marks) == 2 and marks[-1] == len(found.ids) - 1 and all(found.learned[n] for n in marks)
    assert [tokenizer.convert_ids_to_tokens(found.ids[n - 1]) for n in marks] == [".", "."]


@pytest.mark.parametrize("template", ["vicuna", "llama-3", "plain"])
def test_a_template_whose_end_is_no_token_is_refused(captioner: Path, template: str) -> None:
    tokenizer = pieces("legacy")
    if template == "vicuna":
        tokenizer.eos_token = None
    elif template == "llama-3":
        words = Tokenizer(models.BPE({c: n for n, c in enumerate("abcdefghijklmnopqrstuvwxyz<|_>")}, []))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
        tokenizer.add_tokens([AddedToken(IMAGE, special=True)])
    else:
        words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        tokenizer.add_tokens([AddedToken(IMAGE, special=True)])
    with pytest.raises(UserError, match=f"`template`: {template} closes answers with .* no single token"):
        Renderer(tokenizer, template, 2, IMAGE)


def test_the_caption_job_shows_them(captioner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native engine's own batch, not only its book."""
    rendered = exported(captioner, AutoProcessor.from_pretrained(captioner).tokenizer, "llama-3", tmp_path)
    made = rendered.render([("user", f"{IMAGE}\nSay it."), ("assistant", "red")], 1)
    settings = CaptionerConfig(model=str(tmp_path), prompt="Say it.\n", max_tokens=2, decode_workers=0)
    with closing(NativeEngine(settings, "cpu")) as engine:
        shown: list[list[int]] = []
        fill = engine.generator.fill
        monkeypatch.setattr(
            engine.generator,
            "fill",
            lambda images, **more: (shown.append(images[0].texts[0].ids), fill(images, **more)),
        )
        engine.put(Request(0, photo(1), key="k"))
        while not engine.poll(1.0):
            pass
    assert shown == [made.ids[: made.learned.index(True)]]
