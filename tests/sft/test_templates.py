"""Templates: golden token ids and masks, the same text as the exported chat template, and no sample silently masked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from recap.sft.templates import IMAGE, TEMPLATES, BadSample, Renderer

GOLDEN = Path(__file__).parent / "golden_templates.json"
TURNS = [
    ("user", f"What is this?\n{IMAGE}"),
    ("assistant", "a red flag"),
    ("user", "And what else?"),
    ("assistant", " nothing more "),
]


def renderer(captioner: Path, name: str, **more: Any) -> Renderer:
    processor = AutoProcessor.from_pretrained(captioner)
    return Renderer(processor.tokenizer, name, 16, processor.image_token, **more)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_golden(captioner: Path, name: str) -> None:
    """The token ids and masks of one conversation are those that were checked in (and looked at)."""
    turns = TURNS[:2] if name == "plain" else TURNS
    made = renderer(captioner, name)
    found = made.render(turns, 1)
    tokenizer = made.tokenizer
    learned = [token for token, mark in zip(found.ids, found.learned, strict=True) if mark]
    golden = json.loads(GOLDEN.read_text())
    assert {"ids": found.ids, "learned": [int(mark) for mark in found.learned]} == golden[name]
    end = {"plain": "\n", "llama-3": "<|eot_id|>"}.get(name, tokenizer.eos_token)
    answers = [said.strip() + end for role, said in turns if role == "assistant"]
    assert "".join(tokenizer.decode(learned).split()) == "".join("".join(answers).split())
    assert found.ids.count(tokenizer.convert_tokens_to_ids(IMAGE)) == 16


def test_llama3_text(captioner: Path) -> None:
    """Word for word LLaVA-pp's conv_llama3."""
    text, _ = renderer(captioner, "llama-3").text(TURNS[:2])
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nA chat between a curious user and an "
        "artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's "
        "questions."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na red flag<|eot_id|>"
    )


@pytest.mark.parametrize("name", ["vicuna", "llama-3", "short"])
def test_chat_template_is_the_training_text(captioner: Path, name: str) -> None:
    """What the caption job asks is what was trained: the prompt begins the training text, the rest is learned."""
    made = renderer(captioner, name)
    processor = AutoProcessor.from_pretrained(captioner)
    processor.chat_template = made.chat_template()
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    asked = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    text, spans = made.text(TURNS[:2])
    assert prompt == text[: spans[0][0]]
    whole = processor.apply_chat_template([*asked, {"role": "assistant", "content": "a red flag"}])
    assert whole == text


@pytest.mark.parametrize(
    ("turns", "images", "reason"),
    [
        ([("user", IMAGE)], 1, "ends without an answer"),
        ([("assistant", "hi")], 0, "does not begin with the user"),
        ([("user", "a"), ("user", "b")], 0, "do not alternate"),
        ([("user", f"{IMAGE} a"), ("assistant", "  ")], 1, "an answer is empty"),
        ([("user", "no mark"), ("assistant", "b")], 1, "not as many as images"),
        ([("user", f"{IMAGE}{IMAGE}"), ("assistant", "b")], 1, "not as many as images"),
        ([("user", f"{IMAGE} say <|eot_id|>"), ("assistant", "b")], 1, "a special token stands in the text"),
    ],
)
def test_bad_conversations(captioner: Path, turns: list[tuple[str, str]], images: int, reason: str) -> None:
    with pytest.raises(BadSample, match=reason):
        renderer(captioner, "llama-3").render(turns, images)


def test_too_long(captioner: Path) -> None:
    """Cut as LLaVA does where something is left to learn; an image that does not fit whole is an error."""
    turns = [("user", f"{IMAGE} a"), ("assistant", "word " * 100)]
    whole = renderer(captioner, "short").render(turns, 1)
    cut = renderer(captioner, "short", max_tokens=len(whole.ids) - 20).render(turns, 1)
    assert cut.ids == whole.ids[:-20] and cut.learned == whole.learned[:-20]
    with pytest.raises(BadSample, match="too long"):
        renderer(captioner, "short", max_tokens=40, too_long="reject").render(turns, 1)
    with pytest.raises(BadSample, match="nothing to learn"):
        renderer(captioner, "short", max_tokens=12).render(turns, 1)
    late = [("user", "q"), ("assistant", "a"), ("user", f"{IMAGE} b"), ("assistant", "c")]
    with pytest.raises(BadSample, match="image does not fit"):
        renderer(captioner, "short", max_tokens=30).render(late, 1)
