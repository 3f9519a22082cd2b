"""Tiny models and tokenizers for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recap.clip.settings import ClipModelConfig

WORDS = "a the red green blue flag cross star car of and with alt recap photo left right top bottom is"


def tokenizer(folder: Path, architecture: str, words: Iterable[str] = tuple(WORDS.split())) -> Path:
    """A word tokenizer with BERT's special tokens (recap) or CLIP's (hf)."""
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[ALT]", "<bos>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(words)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = ("[CLS]", "[SEP]") if architecture == "recap" else ("<bos>", "<eos>")
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(t, vocabulary[t]) for t in (first, last)]
    )
    named = (
        {"cls_token": first, "sep_token": last} if architecture == "recap" else {"bos_token": first, "eos_token": last}
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", **named)
    fast.save_pretrained(folder)
    return folder


def tiny(folder: Path, architecture: str = "recap", **changes: object) -> ClipModelConfig:
    """A config of 2 x 2 small layers, its tokenizer on disk."""
    made = tokenizer(folder / f"tokenizer-{architecture}", architecture)
    settings: dict[str, Any] = {"vision": "32x2x2", "text": "48x2x3", "embed": 24, "patch": 8, "context": 12}
    settings |= {"vocabulary": 40, "architecture": architecture, "tokenizer": str(made)}
    return ClipModelConfig(**{**settings, **changes})
