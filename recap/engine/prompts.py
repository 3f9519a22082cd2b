"""Prompt formats: which one an image gets, and the token ids that the model sees.

`Encoder` makes a text's ids for fine-tuning, its held-out evaluation, every engine here and the evaluators; `question`
is the text that they ask with. What a model is asked with is then what it was trained on.

Formats are data (`configs/prompts/*.yaml`). A format may contain `{alt}`, the image's original text, cut to a
budget of tokens; the lengths of all prompts are then bounded, as engines with fixed shapes need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recap.engine.settings import CaptionerConfig, PromptFormat
from recap.randomness import uniform

# The original text is tokenised on its own to be cut, then within the prompt: seams may cost a few tokens.
_SEAM_TOKENS = 8
_IMAGE_MARK = "\ue000"  # a private-use character that stands for the image while templates are filled in
_ALT_MARK = "\ue001"


def choose_format(formats: dict[str, PromptFormat], seed: int, key: str) -> str:
    """The format of the image `key`, drawn by weight."""
    names = list(formats)
    weights = np.array([formats[name].weight for name in names], dtype=np.float64)
    borders = np.cumsum(weights / weights.sum())
    index = int(np.searchsorted(borders, uniform(seed, key, "format")[0], side="right"))
    return names[min(index, len(names) - 1)]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text, each image's token repeated for its features. spans: (start, end) of each id's characters;
    empty where the tokenizer is not a fast one."""

    ids: list[int]
    spans: list[tuple[int, int]]


class Encoder:
    """Makes the ids of a prompt, or of a conversation that begins with one.

    What the tokenizer puts before every text (LLaMA's BOS) comes first, once: not where the text has written it
    already. What it puts after one (an EOS) would end the conversation before it began, and is left out.

    Args:
        image_id: of the token that stands for an image.
        image_tokens: how often it is repeated: once for each feature of an image.
    """

    def __init__(self, tokenizer: Any, image_id: int, image_tokens: int) -> None:
        self.tokenizer, self.image_id, self.image_tokens = tokenizer, image_id, image_tokens
        whole, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
        starts = (n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
        self.opening: list[int] = whole[: next(starts, 0)]

    def __call__(self, text: str) -> Encoded:
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(self.tokenizer.is_fast))
        ids, spans = found["input_ids"], found.get("offset_mapping", [])
        if ids[: len(self.opening)] != self.opening:
            ids, spans = self.opening + ids, [(0, 0)] * len(self.opening) * bool(spans) + spans
        repeats = [self.image_tokens if token == self.image_id else 1 for token in ids]
        return Encoded(
            [token for token, times in zip(ids, repeats) for _ in range(times)],
            [span for span, times in zip(spans, repeats) for _ in range(times)],
        )

    def opened(self, text: str) -> bool:
        """Whether a text has written itself what the tokenizer puts before every text."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return bool(self.opening) and ids[: len(self.opening)] == self.opening


def question(chat: Any, prompt: str, images: int = 1) -> str:
    """The text that a user's prompt about images, which stand before its words, becomes by the checkpoint's chat
    template. chat: the processor. ValueError where there is no template."""
    if not getattr(chat, "chat_template", None):
        raise ValueError(
            "The checkpoint has no chat template: the words around the prompt are unknown. Set captioner.template, "
            r'e.g. "USER: {image}\n{prompt} ASSISTANT:" for LLaVA-1.5.'
        )
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    return chat.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


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
        self._encode = Encoder(tokenizer, self.image_token_id, image_tokens)
        self._texts = {name: self._fill(form.text, chat) for name, form in self.formats.items()}

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

    def opened(self, name: str) -> bool:
        """Whether the text begins itself as the tokenizer begins every text: special tokens would come twice."""
        return self._encode.opened(self._texts[name])

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
        ids = self._encode(text).ids
        if (found := ids.count(self.image_token_id)) != self.image_tokens:
            raise ValueError(
                f"Prompt format {name!r} holds the image token {found // self.image_tokens} times. "
                "The chat template must place the image once; set captioner.template to say where."
            )
        return ids

    def _fill(self, prompt: str, chat: Any) -> str:
        """The whole text around the image, with marks where the image token and the original text go."""
        prompt = prompt.replace("{alt}", _ALT_MARK)
        if self.config.template is not None:
            text = self.config.template.replace("{prompt}", prompt).replace("{image}", _IMAGE_MARK)
            return text.replace(_IMAGE_MARK, self._image_token)
        return question(chat, prompt)

    def _plain(self, alt: str) -> str:
        """The original text on one line, without anything the tokenizer would take for a special token."""
        special = {str(token) for token in self.tokenizer.get_added_vocab()} | {self._image_token}
        for token in sorted(special, key=len, reverse=True):
            alt = alt.replace(token, " ")
        return " ".join(alt.split())
