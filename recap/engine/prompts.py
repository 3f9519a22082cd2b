"""Prompt formats: which one an image gets, and the token ids that the model sees.

Formats are data (`configs/prompts/*.yaml`). A format may contain `{alt}`, the image's original text, cut to a
budget of tokens; the lengths of all prompts are then bounded, as engines with fixed shapes need them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from recap.engine.settings import CaptionerConfig, PromptFormat

# The original text is tokenised on its own to be cut, then within the prompt: seams may cost a few tokens.
_SEAM_TOKENS = 8
_IMAGE_MARK = "\ue000"  # a private-use character that stands for the image while templates are filled in
_ALT_MARK = "\ue001"


def uniform(seed: int, key: str, purpose: str, count: int = 1) -> np.ndarray:
    """`count` numbers in [0, 1), float64, from the arguments alone: the engines' only source of chance."""
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def choose_format(formats: dict[str, PromptFormat], seed: int, key: str) -> str:
    """The format of the image `key`, drawn by weight."""
    names = list(formats)
    weights = np.array([formats[name].weight for name in names], dtype=np.float64)
    borders = np.cumsum(weights / weights.sum())
    index = int(np.searchsorted(borders, uniform(seed, key, "format")[0], side="right"))
    return names[min(index, len(names) - 1)]


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt. `ids` repeats the image token for each feature; `max_tokens` bounds the caption."""

    format: str
    ids: list[int]
    max_tokens: int


class PromptBook:
    """All prompt formats of a captioner, ready to be tokenised.

    Args:
        config: the captioner's settings.
        tokenizer: the checkpoint's tokenizer.
        chat: object with `chat_template` and `apply_chat_template` (the processor), used when
            `config.template` is None.
        image_token: text of the token that stands for the image, e.g. "<image>".
        image_tokens: number of image features, 576 for LLaVA-1.5.
    """

    def __init__(self, config: CaptionerConfig, tokenizer: Any, chat: Any, image_token: str, image_tokens: int) -> None:
        self.config, self.tokenizer, self.image_tokens = config, tokenizer, image_tokens
        self.formats = dict(config.prompts) or {"": PromptFormat(text=config.prompt)}
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(image_token))
        self._image_token = image_token
        self._texts = {name: self._fill(form.text, chat) for name, form in self.formats.items()}
        # A tokenizer that marks beginnings adds the mark itself, unless the template has written it already.
        bos = tokenizer.bos_token
        self._special = {name: not (bos and text.startswith(bos)) for name, text in self._texts.items()}

    def names(self, key: str) -> list[str]:
        """Formats in which the image `key` is captioned: one by weight, or all of them."""
        if self.config.formats == "all":
            return list(self.formats)
        return [choose_format(self.formats, self.config.seed, key)]

    def prompt(self, name: str, alt: str = "") -> Prompt:
        """Token ids of format `name` for an image with original text `alt`."""
        limit = self.formats[name].max_tokens or self.config.max_tokens
        return Prompt(name, self._ids(name, self._cut(name, alt)), limit)

    def text(self, name: str, alt: str = "") -> str:
        """The same prompt as text, with one image token, for processors that tokenise it themselves."""
        return self._texts[name].replace(_ALT_MARK, self._cut(name, alt))

    def _cut(self, name: str, alt: str) -> str:
        """The original text, cut so that the prompt keeps within its bound."""
        if _ALT_MARK not in self._texts[name]:
            return ""
        bound, budget = self.length(name), self.formats[name].alt_tokens
        plain = self._plain(alt)
        ids = self.tokenizer(plain, add_special_tokens=False)["input_ids"]
        while True:
            text = plain if len(ids) <= budget else self.tokenizer.decode(ids[:budget]).strip("\ufffd ")
            excess = len(self._ids(name, text)) - bound
            if excess <= 0 or budget == 0:
                return text if excess <= 0 else ""
            budget = max(0, min(budget, len(ids)) - excess)

    def length(self, name: str) -> int:
        """Largest number of tokens that format `name` can have, image features included."""
        room = self.formats[name].alt_tokens + _SEAM_TOKENS if _ALT_MARK in self._texts[name] else 0
        return len(self._ids(name, "")) + room

    def _ids(self, name: str, alt: str) -> list[int]:
        text = self._texts[name].replace(_ALT_MARK, alt)
        ids = self.tokenizer(text, add_special_tokens=self._special[name])["input_ids"]
        if ids.count(self.image_token_id) != 1:
            raise ValueError(
                f"Prompt format {name!r} holds the image token {ids.count(self.image_token_id)} times. "
                "The chat template must place the image once; set captioner.template to say where."
            )
        at = ids.index(self.image_token_id)
        return ids[:at] + [self.image_token_id] * self.image_tokens + ids[at + 1 :]

    def _fill(self, prompt: str, chat: Any) -> str:
        """The whole text around the image, with marks where the image token and the original text go."""
        prompt = prompt.replace("{alt}", _ALT_MARK)
        if self.config.template is not None:
            text = self.config.template.replace("{prompt}", prompt).replace("{image}", _IMAGE_MARK)
            return text.replace(_IMAGE_MARK, self._image_token)
        if not getattr(chat, "chat_template", None):
            raise ValueError(
                "The checkpoint has no chat template: the words around the prompt are unknown. "
                "Set captioner.template, "
                r'e.g. "USER: {image}\n{prompt} ASSISTANT:" for LLaVA-1.5.'
            )
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return chat.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _plain(self, alt: str) -> str:
        """The original text on one line, without anything the tokenizer would take for a special token."""
        special = {str(token) for token in self.tokenizer.get_added_vocab()} | {self._image_token}
        for token in sorted(special, key=len, reverse=True):
            alt = alt.replace(token, " ")
        return " ".join(alt.split())
