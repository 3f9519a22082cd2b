"""Conversation templates: the text around questions and answers, and which of its tokens are supervised.

The whole conversation is tokenised at once. A token is supervised if its characters are in an answer, or in the end
mark that closes it. A sample that cannot be rendered as intended is an error with a reason; it is never silently
masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpc.base.errors import UserError
from recap.engine.prompts import Encoder

IMAGE = "<image>"  # stands for an image in texts, as in LLaVA's JSON
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Template:
    """The texts around turns. {bos} and {eos} stand for the tokenizer's special tokens, {begin} for the tokens that it
    puts before every text.

    system: the beginning; {system} stands for the system text. system_text: its default.
    user, assistant: (text before, text after) a turn. The text after an answer is one token, which also ends captions.
    asks: whether the user's words are shown (`plain` shows only the image).
    """

    system: str
    system_text: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    asks: bool = True


TEMPLATES = {
    # LLaVA's pre-training: the image, the caption, an end of line
    "plain": Template("{bos}", "", ("", ""), ("", "\n"), asks=False),
    # LLaVA-1.5: "vicuna_v1" of its conversation.py
    "vicuna": Template("{bos}{system} ", VICUNA_SYSTEM, ("USER: ", " "), ("ASSISTANT: ", "{eos}")),
    # LLaVA-pp's conv_llama3. Which system text the paper's authors used is not published.
    "llama-3": Template(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        VICUNA_SYSTEM,
        ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    ),
    # for tiny models: few tokens around what matters
    "short": Template("{begin}", "", ("USER: ", "\n"), ("ASSISTANT:\n", "{eos}")),
}


class BadSample(Exception):
    """A sample that cannot be used. reason: a short fixed phrase. detail: the particulars."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation. ids: token ids, with an image's token repeated for each of its features. learned: for
    each token whether it is supervised. images: their number."""

    ids: list[int]
    learned: list[bool]
    images: int


class Renderer:
    """Renders conversations to tokens of one tokenizer.

    Args:
        tokenizer: a fast one, since character offsets are needed.
        image_tokens: number of features of one image, 576 for LLaVA-1.5.
        max_tokens, too_long: see `SftConfig`.
    """

    def __init__(
        self, tokenizer: Any, name: str, image_tokens: int, image_token: str = IMAGE, *,
        system: str | None = None, max_tokens: int = 2048, too_long: str = "truncate",
    ) -> None:  # fmt: skip
        if not tokenizer.is_fast:
            raise ValueError("a fast tokenizer (tokenizer.json) is needed: others do not tell where tokens come from")
        self.tokenizer, self.template, self._image_token = tokenizer, TEMPLATES[name], image_token
        self._image_tokens, self._max, self._too_long = image_tokens, max_tokens, too_long
        self._image_id = tokenizer.convert_tokens_to_ids(image_token)
        self._encode = Encoder(tokenizer, self._image_id, image_tokens)
        self._system = self.template.system_text if system is None else system
        before, place, after = self._marks(self.template.system).partition("{system}")
        self._begin, self._has_system = (before, after), bool(place)
        self._user = tuple(map(self._marks, self.template.user))
        self._assistant = tuple(map(self._marks, self.template.assistant))
        self._special = {str(token) for token in tokenizer.get_added_vocab()} - {image_token}
        self.end = self._end_token(name)

    def _marks(self, text: str) -> str:
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        begin = "".join(self.tokenizer.convert_ids_to_tokens(self._encode.opening))
        return text.replace("{bos}", bos).replace("{eos}", eos).replace("{begin}", begin)

    def _end_token(self, name: str) -> int:
        """The token that ends an answer, and a caption. UserError where the tokenizer has no such token."""
        mark = self._assistant[1]
        word, closed = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", "a" + mark))
        rest = closed[len(word) :] if closed[: len(word)] == word else []
        if len(rest) != 1 or rest[0] in (self.tokenizer.unk_token_id, self._image_id):
            what = repr(mark) if mark else "an end-of-text mark (eos_token)"
            raise UserError(
                f"config: `template`: {name} closes answers with {what}, which is no single token of this tokenizer. "
                f"Write another of {', '.join(TEMPLATES)}, or add the token to the checkpoint's tokenizer."
            )
        return rest[0]

    def text(
        self, turns: Sequence[tuple[str, str]], closed: bool = True, system: str | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """(the conversation's text, spans of its answers with their end marks: (start, end) in characters).

        Args:
            turns: ("user" | "assistant", text), alternating, beginning with the user.
            closed: False leaves the end marks out.
            system: the conversation's own system text.

        Raises:
            BadSample: the turns do not alternate.
        """
        check_turns(turns)
        if system is not None and not self._has_system:
            raise BadSample("template: has no place for a system text", system[:40])
        text, spans = (self._system if system is None else system.strip()).join(self._begin), []
        for role, said in turns:
            if role == "user":
                before, after = self._user
                said = _image_first(said) if self.template.asks else IMAGE * said.count(IMAGE)
                text += before + said.replace(IMAGE, self._image_token) + after
            else:
                before, after = self._assistant[0], self._assistant[1] * closed
                text += before
                start = len(text.rstrip(" "))  # the model writes the blank before its answer
                text += said.strip() + after
                spans.append((start, len(text)))
        return text, spans

    def render(self, turns: Sequence[tuple[str, str]], images: int, system: str | None = None) -> Rendered:
        """The tokens of a conversation about `images` images. BadSample where it cannot be rendered."""
        marks = sum(said.count(IMAGE) for role, said in turns if role == "user")
        if marks != images:
            raise BadSample("image tokens: not as many as images", f"{marks} in the text, {images} images")
        for said in [*(said for _, said in turns), system or ""]:
            if found := next((mark for mark in self._special if mark in said), None):
                raise BadSample("template: a special token stands in the text", found)
        ids, learned = self._tokens(turns, system)
        if len(ids) > self._max:
            if self._too_long == "reject":
                raise BadSample("too long", f"{len(ids)} tokens, {self._max} fit")
            ids, learned = ids[: self._max], learned[: self._max]
        if not any(learned):
            raise BadSample("nothing to learn: the answer is empty or cut off")
        if ids.count(self._image_id) != images * self._image_tokens:
            raise BadSample("image tokens: the image does not fit", f"{self._max} tokens")
        return Rendered(ids, learned, images)

    def _tokens(self, turns: Sequence[tuple[str, str]], system: str | None) -> tuple[list[int], list[bool]]:
        """(token ids, whether each is supervised). An end mark of ordinary characters ("\\n") could merge with the text
        before it (".\\n" is one token of LLaMA-3), so it is inserted as the token that ends captions."""
        spliced = self._assistant[1] not in self._special
        text, spans = self.text(turns, not spliced, system)
        found = self._encode(text)
        ids, learned = found.ids, _inside(text, found.spans, spans)
        for _, end in reversed(spans) if spliced else ():
            after = next((n for n, (start, _) in enumerate(found.spans) if start >= end), len(ids))
            ids[after:after], learned[after:after] = [self.end], [True]
        return ids, learned

    def chat_template(self) -> str:
        """The same template in Jinja, for processors. In a user's message, images come before the text."""
        user, assistant = self._user, self._assistant
        images = "{% for part in message.content if part.type == 'image' %}"
        images += _jinja(self._image_token + ("\n" if self.template.asks else "")) + "{% endfor %}"
        system = _jinja(self._system)
        if self._has_system:
            said = _WORDS.replace("message.", "messages[0].")
            system = "{% if messages[0].role == 'system' %}" + said + "{% else %}" + system + "{% endif %}"
        return (
            _jinja(self._begin[0])
            + system * self._has_system
            + _jinja(self._begin[1])
            + "{% for message in messages %}{% if message.role == 'user' %}"
            + _jinja(user[0])
            + ("{% if message.content is not string %}" + images + "{% endif %}")
            + (_WORDS if self.template.asks else "")
            + _jinja(user[1])
            + "{% elif message.role == 'assistant' %}"
            + _jinja(assistant[0])
            + _WORDS
            + _jinja(assistant[1])
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
            + _jinja(assistant[0].rstrip(" "))
            + "{% endif %}"
        )


# The text of a message without surrounding white space, as in training.
_WORDS = (
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{{ message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join | trim }}{% endif %}"
)


def _jinja(text: str) -> str:
    """Literal text as an expression: outside of one, Jinja would trim trailing newlines."""
    return "{{ " + repr(text) + " }}" if text else ""


def check_turns(turns: Sequence[tuple[str, str]]) -> None:
    """BadSample unless the user begins and every question has an answer."""
    if not turns or turns[0][0] != "user":
        raise BadSample("conversation: does not begin with the user")
    for number, (role, said) in enumerate(turns):
        if role != ("user", "assistant")[number % 2]:
            raise BadSample("conversation: turns do not alternate", f"turn {number} is {role}'s")
        if role == "assistant" and not said.strip():
            raise BadSample("conversation: an answer is empty", f"turn {number}")
    if len(turns) % 2:
        raise BadSample("conversation: ends without an answer")


def _image_first(said: str) -> str:
    """The text with its images moved to the front, each on a line of its own, as LLaVA does."""
    count = said.count(IMAGE)
    rest = said.replace(IMAGE, "").strip()
    return f"{IMAGE}\n" * count + rest


def _inside(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token is in a span. A token may begin before the span only with white space."""
    learned = []
    for start, end in offsets:
        span = next(((a, b) for a, b in spans if start < b and end > a), None)
        if span is not None and start < span[0] and text[start : span[0]].strip():
            raise BadSample("template: a token holds both question and answer", text[start:end])
        learned.append(span is not None)
    return learned
