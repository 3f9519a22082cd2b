"""Prompt formats as the token ids that a model sees.

`Encoder` makes a text's ids for fine-tuning, its held-out evaluation, every engine here and the evaluators; `question`
is the text that they ask with. What a model is asked with is then what it was trained on.

Formats are data (`recap.engine.formats`, `configs/prompts/*.yaml`). Where all columns that a format names have a budget
of tokens, the lengths of its prompts are bounded, as engines with fixed shapes need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc.base.errors import UserError
from recap.engine.formats import EXAMPLES, Filling, Format, Said, format_name, one_line
from recap.engine.settings import CaptionerConfig

# A column's text is tokenised on its own to be cut, then within the prompt: seams may cost a few tokens.
_SEAM_TOKENS = 8
_PROBES = ("", "a", "9 b", ",", '"Q', ".")
# Private-use characters stand for the image and the system text while templates are filled in.
_IMAGE_MARK, _SYSTEM_MARK = "\ue000", "\ue001"


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
            [token for token, times in zip(ids, repeats, strict=True) for _ in range(times)],
            # strict=False: a tokenizer without offsets gives no spans at all
            [span for span, times in zip(spans, repeats, strict=False) for _ in range(times)],
        )

    def opened(self, text: str) -> bool:
        """Whether a text has written itself what the tokenizer puts before every text."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return bool(self.opening) and ids[: len(self.opening)] == self.opening


def question(chat: Any, prompt: str, images: int = 1, system: str = "") -> str:
    """The text that a user's prompt about images, which stand before its words, becomes by the checkpoint's chat
    template. chat: the processor, or the tokenizer of a model of texts. UserError where there is no template."""
    if not getattr(chat, "chat_template", None):
        mark = "{image}\\n" if images else ""
        raise UserError(
            "The checkpoint has no chat template: the words around the prompt are unknown. Set captioner.template, "
            f'e.g. "USER: {mark}{{prompt}} ASSISTANT:" for LLaVA-1.5, or "{mark}{{prompt}}" for a plain model.'
        )
    in_parts = hasattr(chat, "tokenizer")  # a processor's templates take lists of parts, a tokenizer's take texts

    def content(text: str, images: int = 0) -> Any:
        return [{"type": "image"}] * images + [{"type": "text", "text": text}] if in_parts else text

    messages = [{"role": "system", "content": content(system)}] if system else []
    messages.append({"role": "user", "content": content(prompt, images)})
    return chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


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
        chat: object with `chat_template` and `apply_chat_template` (the processor, or the tokenizer of a model of
            texts), used when `config.template` is None.
        image_token: text of the token that stands for the image, e.g. "<image>"; None for a model of texts.
        image_tokens: number of image features, 576 for LLaVA-1.5; 0 where no image is shown.
        image_text: what stands for an image in a text, where that is more than its token.
    """

    def __init__(
        self, config: CaptionerConfig, tokenizer: Any, chat: Any, image_token: str | None, image_tokens: int,
        image_text: str | None = None,
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.image_tokens = config, tokenizer, image_tokens
        self.formats = dict(config.asks())
        self.image_token_id = -1 if image_token is None else int(tokenizer.convert_tokens_to_ids(image_token))
        self._image_text = image_token if image_text is None else image_text
        special = {str(token) for token in tokenizer.get_added_vocab()} | ({image_token} if image_token else set())
        self._special = sorted(special, key=len, reverse=True)
        self._encode = Encoder(tokenizer, self.image_token_id, image_tokens)
        self._filling = {name: Filling(name, form, config.seed) for name, form in self.formats.items()}
        self._texts = {name: self._around(name, form, chat) for name, form in self.formats.items()}
        self._lengths = {name: self._longest(name) for name in self.formats if not self._unbounded(name)}

    def names(self, key: str) -> list[str]:
        """The answers that the row `key` gets: one format by weight, or all of them; each as often as `samples`."""
        return self.config.names(key)

    def prompt(self, answer: str, texts: Mapping[str, Said] | None = None, key: str = "") -> Prompt:
        """Token ids of an answer's format for a row whose columns say `texts`."""
        name = format_name(answer)
        limit = self.formats[name].max_tokens or self.config.max_tokens
        return Prompt(answer, self._ids(name, self._shown(name, texts or {}, key)), limit)

    def text(self, answer: str, texts: Mapping[str, Said] | None = None, key: str = "") -> str:
        """The same prompt as text, with one image token, for processors that tokenise it themselves."""
        name = format_name(answer)
        return self._filled(name, self._shown(name, texts or {}, key))

    def opened(self, answer: str) -> bool:
        """Whether the text begins itself as the tokenizer begins every text: special tokens would come twice."""
        return self._encode.opened(self._texts[format_name(answer)])

    def probes(self) -> list[list[int]]:
        """Ids of every format with its places empty and filled in ways that share no first token: where they differ, a
        place begins."""
        return [
            self._ids(name, dict.fromkeys(filling.places.names, text))
            for name, filling in self._filling.items()
            for text in _PROBES
        ]

    def bounded(self) -> bool:
        """Whether every format's prompts have a largest length."""
        return len(self._lengths) == len(self.formats)

    def length(self, name: str) -> int:
        """Largest number of tokens that format `name` can have, image features included."""
        if name not in self._lengths:
            raise UserError(
                f"Format {name!r}: column {self._unbounded(name)[0]} has no budget, so that its prompts have no "
                "largest length; set one."
            )
        return self._lengths[name]

    def _longest(self, name: str) -> int:
        places, budgets = self._filling[name].places, self.formats[name].budgets()
        plain = len(self._encode(places.open(self._texts[name])).ids)
        room = sum(budgets[column] + _SEAM_TOKENS for column in places.names if column != EXAMPLES)
        return plain + room + self._longest_examples(name)

    def _unbounded(self, name: str) -> list[str]:
        form = self.formats[name]
        return [column for column in form.columns() if column not in form.budgets()]

    def _longest_examples(self, name: str) -> int:
        """Tokens of a format's examples at most."""
        bank = self._filling[name].bank
        if bank is None:
            return 0
        lengths = sorted(len(self._tokens(self._plain(tuple(text.split("\n"))))) for text in bank.texts)
        between = len(self._tokens(bank.config.between)) + _SEAM_TOKENS
        return sum(lengths[-bank.config.count :]) + between * bank.config.count

    def _shown(self, name: str, texts: Mapping[str, Said], key: str) -> dict[str, str]:
        """What stands in each place, cut so that the prompt keeps within its bound."""
        filling, budgets = self._filling[name], self.formats[name].budgets()
        sources = filling.sources(key)
        whole = {place: self._plain(texts.get(column, "")) for place, column in sources.items()}
        if filling.bank:
            whole[EXAMPLES] = filling.examples(key)
        ids = {place: self._tokens(whole[place]) for place, column in sources.items() if column in budgets}
        left = {place: budgets[sources[place]] for place in ids}
        bound = self._lengths.get(name)
        while True:
            shown = whole | {place: self._cut(whole[place], ids[place], left[place]) for place in ids}
            excess = 0 if bound is None else len(self._ids(name, shown)) - bound
            if excess <= 0:
                return shown
            # Texts whose tokens come out longer among their neighbours: the longest gives way.
            longest = max(ids, key=lambda place: min(left[place], len(ids[place])), default=None)
            if longest is None or left[longest] == 0:
                return {place: "" if place in ids else text for place, text in shown.items()}
            left[longest] = max(0, min(left[longest], len(ids[longest])) - excess)

    def _cut(self, text: str, ids: list[int], budget: int) -> str:
        return text if len(ids) <= budget else self.tokenizer.decode(ids[:budget]).strip("\ufffd ")

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _filled(self, name: str, shown: Mapping[str, str]) -> str:
        return self._filling[name].places.fill(self._texts[name], shown)

    def _ids(self, name: str, shown: Mapping[str, str]) -> list[int]:
        ids = self._encode(self._filled(name, shown)).ids
        if (found := ids.count(self.image_token_id)) != self.image_tokens:
            raise UserError(
                f"Prompt format {name!r} holds the image token {found // max(1, self.image_tokens)} times. "
                "The chat template must place the image once; set captioner.template to say where."
            )
        return ids

    def _around(self, name: str, form: Format, chat: Any) -> str:
        """The whole text around the image, with marks where columns go."""
        prompt = self._filling[name].places.text
        template = self.config.template
        if template is None:
            return question(chat, prompt, int(form.image and self._image_text is not None), form.system)
        text = template.replace("{system}", _SYSTEM_MARK).replace("{image}", _IMAGE_MARK)
        text = text.replace("{prompt}", prompt).replace(_SYSTEM_MARK, form.system)
        return text.replace(_IMAGE_MARK, self._image_text or "")

    def _plain(self, value: Said) -> str:
        """What a column says, without anything the tokenizer would take for a special token."""
        return one_line(value, self._special)
