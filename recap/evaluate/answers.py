"""Asks a captioner about images, greedily, through transformers (evaluation needs no speed). Prompt ids and end tokens
are those of the captioning job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

from hpc.base.errors import UserError
from recap.engine.captions import make_caption
from recap.engine.checkpoint import end_tokens, image_tokens
from recap.engine.processor import load_processor
from recap.engine.prompts import Encoder, question
from recap.engine.sampling import Sampler
from recap.engine.settings import CaptionerConfig
from recap.engine.transformers_backend import generate, plain


class Answerer:
    """A LLaVA checkpoint that answers questions.

    Args:
        device: "cpu" (float32) or "cuda" (bf16).
    """

    def __init__(self, model: Path, device: str = "cpu") -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._processor: Any = load_processor(model)
        loaded = LlavaForConditionalGeneration.from_pretrained(model, dtype=dtype)
        self._model = plain(loaded.to(device))
        tokenizer, config = self._processor.tokenizer, loaded.config
        image_id = tokenizer.convert_tokens_to_ids(self._processor.image_token)
        self._encode = Encoder(tokenizer, image_id, image_tokens(config))
        self._ends = end_tokens(model, config, tokenizer)

    def ids(self, prompt: str, images: int) -> list[int]:
        """Token ids of a question about `images` images."""
        try:
            return self._encode(question(self._processor, prompt, images)).ids
        except (UserError, ValueError) as error:
            raise UserError(f"evaluate: {error}") from error

    def ask(self, prompt: str, images: Sequence[Image.Image], max_tokens: int = 128) -> str:
        """The answer to a question about several images, which come before its words."""
        return self._answers([self.ids(prompt, len(images))], images, max_tokens)[0]

    def ask_each(self, prompt: str, images: Sequence[Image.Image], max_tokens: int = 128) -> list[str]:
        """The answers to one question about each image, in one batch."""
        return self._answers([self.ids(prompt, 1)] * len(images), images, max_tokens)

    @torch.inference_mode()
    def _answers(self, rows: list[list[int]], images: Sequence[Image.Image], max_tokens: int) -> list[str]:
        """Answers to questions whose token ids have equal length."""
        ids = torch.tensor(rows, device=self._model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if images:
            pixels = self._processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
            inputs["pixel_values"] = pixels.to(self._model.device, self._model.dtype)
        greedy, none = Sampler.of(CaptionerConfig()), torch.zeros(len(rows), 0)
        made = generate(self._model, greedy, none, self._ends, max_tokens, **inputs)
        tokenizer = self._processor.tokenizer
        return [make_caption(tokenizer, 0, new, self._ends, max_tokens, trim=False).text for new in made]
