"""Ask a captioner about images: greedy, one question at a time, through transformers (evaluation needs no speed)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


class Answerer:
    """A LLaVA checkpoint that answers questions.

    Args:
        device: "cpu" (float32) or "cuda" (bf16).
    """

    def __init__(self, model: Path, device: str = "cpu") -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._processor = AutoProcessor.from_pretrained(model)
        loaded = LlavaForConditionalGeneration.from_pretrained(model, dtype=dtype)
        self._model = loaded.to(device).eval()

    def ask(self, question: str, images: Sequence[Image.Image], max_tokens: int = 128) -> str:
        """The answer to a question about images, which stand before its words."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self._processor(images=list(images) or None, text=prompt, return_tensors="pt").to(self._model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        said = self._processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return said[0].strip()
