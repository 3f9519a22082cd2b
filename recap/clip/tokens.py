"""Encodes texts as token ids, in the form that each architecture takes. The fast tokenizer uses threads.

hf     BOS, text, EOS, padding        recap    [CLS], text, padding (no [SEP]; padding is 0)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hpc.base.errors import UserError
from recap.clip.settings import ClipModelConfig
from recap.clip.tokenizer_files import check_end, lacks


@dataclass(frozen=True)
class Text:
    """One text to encode. prefix: a token that is put before it."""

    text: str
    prefix: str | None = None


class Tokens:
    """The tokenizer of a model.

    Raises:
        UserError: there is no tokenizer, or it does not fit the text tower.
    """

    def __init__(self, config: ClipModelConfig) -> None:
        self.config = config
        self.tokenizer = _load(config.tokenizer)
        first = self.tokenizer.bos_token_id if config.architecture == "hf" else self.tokenizer.cls_token_id
        if first is None:
            raise UserError(lacks(config.tokenizer, "bos_token" if config.architecture == "hf" else "cls_token"))
        self._first = first
        if len(self.tokenizer) > config.vocabulary:
            raise UserError(
                f"config: `model.vocabulary`: the tokenizer {config.tokenizer} has {len(self.tokenizer):,} tokens, the "
                "text tower "
                f"{config.vocabulary:,} rows. Write at least {len(self.tokenizer)}."
            )
        if config.architecture == "recap":
            self._last, self.pad = [], 0
        else:
            if self.tokenizer.eos_token_id is None:
                raise UserError(lacks(config.tokenizer, "eos_token"))
            check_end(config.tokenizer, self.tokenizer.eos_token_id)
            self._last = [self.tokenizer.eos_token_id]
            self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._last[0]

    def for_transformers(self) -> Any:
        """The tokenizer for transformers' CLIPProcessor, which adds BOS and EOS, pads at the end and cuts at the
        context as this class does."""
        made = copy.deepcopy(self.tokenizer)
        if made.pad_token_id is None:
            made.pad_token = made.eos_token
        made.padding_side = made.truncation_side = "right"
        made.model_max_length = self.config.context
        if made("a")["input_ids"] != [self._first, *self.ids(["a"])[0], *self._last]:
            first, last = made.bos_token, made.eos_token
            made.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{first} $A {last}", special_tokens=[(first, made.bos_token_id), (last, made.eos_token_id)]
            )
        return made

    @property
    def eos(self) -> int:
        return self._last[0] if self._last else 0

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, and not cut."""
        backend = self.tokenizer.backend_tokenizer
        return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def shape(self, ids: Sequence[Sequence[int]], prefixes: Sequence[str | None] = (), context: int = 0) -> np.ndarray:
        """int64 [texts, context]: ids with special tokens, cut or padded. As in open_clip, two places of the context
        are reserved for special tokens. context: 0: the model's."""
        context = context or self.config.context
        out = np.full((len(ids), context), self.pad, dtype=np.int64)
        for row, tokens in enumerate(ids):
            prefix = prefixes[row] if prefixes else None
            head = [self._first, *([self._token(prefix)] if prefix else [])]
            whole = [*head, *tokens[: context - 1 - len(head)], *self._last]
            out[row, : len(whole)] = whole
        return out

    def encode(self, texts: Sequence[Text | str], context: int = 0) -> tuple[np.ndarray, int]:
        """(int64 [texts, context], how many texts were cut)."""
        given = [t if isinstance(t, Text) else Text(t) for t in texts]
        ids = self.ids([" ".join(t.text.split()) for t in given])
        limit = (context or self.config.context) - 2
        cut = sum(len(tokens) + (t.prefix is not None) > limit for tokens, t in zip(ids, given, strict=True))
        return self.shape(ids, [t.prefix for t in given], context), cut

    def _token(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise UserError(f"config: `text.prefix`: the tokenizer {self.config.tokenizer} has no token {token!r}.")
        return int(found)


def _load(folder: str) -> Any:
    if not folder or not Path(folder).is_dir():
        raise UserError(f"config: `model.tokenizer`: {folder or 'empty'}: write the folder of a tokenizer.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"config: `model.tokenizer`: {folder} holds no fast (Rust) tokenizer: tokenizer.json is missing."
        )
    return tokenizer
