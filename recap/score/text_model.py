"""A transformer of texts as scorers run it.

All texts of a batch are tokenised in one call (a fast tokenizer is written in Rust). They are then run in groups of
similar length, so that little is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hpc.base.errors import UserError

_TEXTS_PER_PASS = 32
# Model types that number positions from pad_token_id + 1 on, so that their table holds that many tokens less.
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text (or of a pair), as the model takes them. cut: whether its context did not hold them all."""

    inputs: dict[str, list[int]]
    cut: bool

    def __len__(self) -> int:
        return len(self.inputs["input_ids"])


class TextModel:
    """A model and its tokenizer.

    Args:
        limit: tokens of a text at most; 0: as many as its tokenizer and its positions allow.

    Raises:
        UserError: the tokenizer is not a fast one.
    """

    def __init__(self, folder: str, model: Any, limit: int = 0) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"score: {folder} holds no fast (Rust) tokenizer: tokenizer.json is missing.")
        self.model, self.device = model, model.device
        self._pad = next(
            one for one in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if one is not None
        )
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = self._pad  # decoders with one logit find a text's last token by it
        self.limit = limit or _limit(self.tokenizer, model.config)

    @classmethod
    def open(cls, folder: str, kind: str, device: str, precision: str, limit: int = 0, **options: Any) -> TextModel:
        """The checkpoint in `folder`, opened by the transformers class `kind` with these options. precision: fp32 |
        bf16."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        made = getattr(transformers, kind).from_pretrained(folder, dtype=dtype, **options)
        return cls(folder, made.to(device).eval(), limit)

    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None = None, lead: str = "") -> list[Encoded]:
        """Token ids of texts, or of pairs of `texts` and `seconds`. What does not fit is cut at the end; of a pair, at
        the end of the longer text. lead: written before each text."""
        if not texts:
            return []
        firsts = [lead + " ".join(text.split()) for text in texts]
        others = None if seconds is None else [" ".join(text.split()) for text in seconds]
        found = self.tokenizer(firsts, others, truncation=True, max_length=self.limit)
        return [
            Encoded({name: found[name][row] for name in found}, bool(found.encodings[row].overflowing))
            for row in range(len(firsts))
        ]

    @torch.inference_mode()
    def run(self, texts: Sequence[Encoded], take: Callable[[Any, torch.Tensor], torch.Tensor]) -> list[np.ndarray]:
        """`take(output, mask)` for each group of b texts, where output is the model's and mask is int64 [b, T].

        Returns:
            For each text its float64 row of what `take` returned, in the order of `texts`.
        """
        found: dict[int, np.ndarray] = {}
        for rows, inputs in self.parts(texts):
            made = take(self.model(**inputs), inputs["attention_mask"]).double().cpu().numpy()
            found |= dict(zip(rows, made, strict=True))
        return [found[row] for row in range(len(texts))]

    def parts(self, texts: Sequence[Encoded]) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """(indices of texts of similar length, their padded inputs), until all texts are done."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        for start in range(0, len(order), _TEXTS_PER_PASS):
            rows = order[start : start + _TEXTS_PER_PASS]
            yield rows, self.padded([texts[row] for row in rows])

    def padded(self, texts: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """int64 [b, T] by name, on the model's device, filled up on the right."""
        longest = max(map(len, texts))
        fill = {"input_ids": self._pad, "token_type_ids": self.tokenizer.pad_token_type_id}
        rows = {
            name: [text.inputs[name] + [fill.get(name, 0)] * (longest - len(text)) for text in texts]
            for name in texts[0].inputs
        }
        return {name: torch.tensor(values, device=self.device) for name, values in rows.items()}


def _limit(tokenizer: Any, config: Any) -> int:
    """How many tokens the model can take: by its tokenizer and by its table of positions."""
    config = getattr(config, "text_config", config)
    positions = int(getattr(config, "max_position_embeddings", 0) or tokenizer.model_max_length)
    if config.model_type in _SHIFTED:
        positions -= int(config.pad_token_id or 0) + 1
    return min(int(tokenizer.model_max_length), positions)
