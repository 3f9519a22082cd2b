"""From generated tokens to the captions of a request: text, finish reason, one or several prompt formats."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from recap.engine.interface import Caption, Request

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")


@dataclass
class Pending:
    """A request whose captions are being made: those finished so far, and the formats asked for.

    note: what is odd about its image, see `Caption`.
    """

    request: Request
    names: list[str]
    captions: dict[str, Caption] = field(default_factory=dict)
    note: str = ""

    def add(self, caption: Caption) -> Caption | None:
        """Add one format's caption; the request's caption once all are there."""
        self.captions[caption.format] = caption
        if len(self.captions) < len(self.names):
            return None
        first, *others = (self.captions[name] for name in self.names)
        return replace(first, alternatives=tuple(others), note=self.note)

    def write(self, format: str, ids: list[int], limit: int, checkpoint: Any, trim: bool) -> Caption | None:
        """Add what a model wrote in one format; see `make_caption` and `add`. checkpoint: its tokenizer and eos."""
        return self.add(make_caption(checkpoint.tokenizer, self.request.id, ids, checkpoint.eos, limit, trim, format))


def make_caption(
    tokenizer: Any, id: int, ids: list[int], eos: tuple[int, ...], limit: int, trim: bool, format: str = ""
) -> Caption:
    """The caption of generated token ids: cut at the first end token, or at `limit` tokens."""
    ids = ids[:limit]
    end = next((i for i, token in enumerate(ids) if token in eos), None)
    finish = "length" if end is None else "stop"
    ids = ids[:end]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if trim and finish == "length":
        text = trim_to_sentence(text)
    return Caption(id, text, len(ids), finish, format=format)


def trim_to_sentence(text: str) -> str:
    """`text` up to its last full sentence; all of it where there is none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
