"""Conversation templates: the text around questions and answers, and which of its tokens are learned.

The whole conversation is tokenised at once; a token is supervised if its characters lie in an answer (or in the end
mark that closes it). A sample that does not come out as meant is an error with a reason, never silently masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

IMAGE = "<image>"  # stands for an image in texts, as in LLaVA's JSON
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Template:
    """Texts around the turns. {bos} and {eos} stand for the tokenizer's own marks.

    system: what comes first; {system} stands for the system text.
    asks: whether the user's words are shown (`plain` shows the image alone).
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
    "short": Template("", "", ("USER: ", "\n"), ("ASSISTANT:\n", "{eos}")),
}


class BadSample(Exception):
    """A sample that cannot be learned from. `reason` is a short fixed phrase, `detail` the particulars."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Rendered:
    """ids: token ids with each image's token repeated; learned: which of them are answers. Equal lengths."""

    ids: list[int]
    learned: list[bool]
    images: int


class Renderer:
    """Conversations to tokens, for one tokenizer.

    Args:
        tokenizer: a fast one (it must give offsets).
        image_tokens: features of one image, 576 for LLaVA-1.5.
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
        text = self.template.system_text if system is None else system
        self.begin = self._marks(self.template.system).replace("{system}", text)
        self._user = tuple(map(self._marks, self.template.user))
        self._assistant = tuple(map(self._marks, self.template.assistant))
        self._special = {str(token) for token in tokenizer.get_added_vocab()} - {image_token}

    def _marks(self, text: str) -> str:
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        return text.replace("{bos}", bos).replace("{eos}", eos)

    def text(self, turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """The conversation and the spans (start, end) of its answers, end marks included, in characters.

        turns: ("user" | "assistant", text), alternating, beginning with the user. Raises BadSample.
        """
        _check_turns(turns)
        text, spans = self.begin, []
        for role, said in turns:
            if role == "user":
                before, after = self._user
                said = _image_first(said) if self.template.asks else IMAGE * said.count(IMAGE)
                text += before + said.replace(IMAGE, self._image_token) + after
            else:
                before, after = self._assistant
                text += before
                start = len(text.rstrip(" "))  # a blank before the answer is the model's to write
                text += said.strip() + after
                spans.append((start, len(text)))
        return text, spans

    def render(self, turns: Sequence[tuple[str, str]], images: int) -> Rendered:
        """Tokens and mask of a conversation about so many images. Raises BadSample."""
        marks = sum(said.count(IMAGE) for role, said in turns if role == "user")
        if marks != images:
            raise BadSample("image tokens: not as many as images", f"{marks} in the text, {images} images")
        for _, said in turns:
            if found := next((mark for mark in self._special if mark in said), None):
                raise BadSample("template: a special token stands in the text", found)
        text, spans = self.text(turns)
        bos = self.tokenizer.bos_token
        encoded = self.tokenizer(
            text, return_offsets_mapping=True, add_special_tokens=bool(bos) and not text.startswith(bos)
        )
        ids, learned = self._expand(encoded["input_ids"], _inside(text, encoded["offset_mapping"], spans))
        if len(ids) > self._max:
            if self._too_long == "reject":
                raise BadSample("too long", f"{len(ids)} tokens, {self._max} fit")
            ids, learned = ids[: self._max], learned[: self._max]
        if not any(learned):
            raise BadSample("nothing to learn: the answer is empty or cut off")
        if ids.count(self._image_id) != images * self._image_tokens:
            raise BadSample("image tokens: the image does not fit", f"{self._max} tokens")
        return Rendered(ids, learned, images)

    def _expand(self, ids: list[int], learned: list[bool]) -> tuple[list[int], list[bool]]:
        """Repeat the image's token for each of its features."""
        out, mask = [], []
        for token, answer in zip(ids, learned, strict=True):
            repeat = self._image_tokens if token == self._image_id else 1
            out += [token] * repeat
            mask += [answer] * repeat
        return out, mask

    def chat_template(self) -> str:
        """The same template as Jinja, for processors: a user's text and images, images first."""
        user, assistant = self._user, self._assistant
        content = "{% if part.type == 'image' %}" + _jinja(self._image_token + ("\n" if self.template.asks else ""))
        content += "{% elif part.type == 'text' %}" + ("{{ part.text }}" if self.template.asks else "") + "{% endif %}"
        return (
            _jinja(self.begin)
            + "{% for message in messages %}{% if message.role == 'user' %}"
            + _jinja(user[0])
            + "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
            + content
            + "{% endfor %}{% endif %}"
            + _jinja(user[1])
            + "{% elif message.role == 'assistant' %}"
            + _jinja(assistant[0])
            + "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
            + "{{ part.text }}{% endfor %}{% endif %}"
            + _jinja(assistant[1])
            + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
            + _jinja(assistant[0].rstrip(" "))
            + "{% endif %}"
        )


def _jinja(text: str) -> str:
    """Literal text; trailing newlines would be trimmed outside of an expression."""
    return "{{ " + repr(text) + " }}" if text else ""


def _check_turns(turns: Sequence[tuple[str, str]]) -> None:
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
    """LLaVA puts the image before the words, on a line of its own."""
    count = said.count(IMAGE)
    rest = said.replace(IMAGE, "").strip()
    return f"{IMAGE}\n" * count + rest


def _inside(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token lies in a span. One that begins before it may hold only white space there."""
    learned = []
    for start, end in offsets:
        span = next(((a, b) for a, b in spans if start < b and end > a), None)
        if span is not None and start < span[0] and text[start : span[0]].strip():
            raise BadSample("template: a token holds both question and answer", text[start:end])
        learned.append(span is not None)
    return learned
