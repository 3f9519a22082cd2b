"""A tokenizer for CLIP models on the flags: a token for each word of captions and alt-texts.

    python -m recap.worlds.words OUT

It begins texts with a token of both names, BOS and CLS, so that plain CLIPs and the paper's text tower take it. Words
that no flag of the sample needed are unknown.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hpc.base.errors import Parser
from recap.worlds.flags import alt_text, sample

SPECIAL = ["<pad>", "<unk>", "<bos>", "<eos>"]
SAMPLES = 3000  # flags whose words are taken


def texts() -> list[str]:
    """Captions and alt-texts of flags of a seed that no training has."""
    found, rng = [], random.Random("words")
    for index in range(SAMPLES):
        scene, _, caption = sample(-1, index)
        found += [caption, alt_text(scene, rng)]
    return found


def build() -> PreTrainedTokenizerFast:
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts() for word, _ in splitter.pre_tokenize_str(text.lower())})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), splitter
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    named = {
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "cls_token": "<bos>",
        "eos_token": "<eos>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    build().save_pretrained(parser.parse_args().out)


if __name__ == "__main__":
    main()
