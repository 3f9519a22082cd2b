"""Formats: what a model is asked, as data. A text with places for columns, and what fills the places. Torch-free.

    text: "Sentence 1: {alt}\\n[[Tags: {tags}\\n]]Sentence 2: {syn}\\nNew sentence:"

`{name}` stands for a column, `{examples}` for examples drawn by key; what is between `[[` and `]]` vanishes where a
column in it is empty. A column's text stands on one line, a list's entries on a line each.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from recap.randomness import uniform

Said = str | tuple[str, ...]
"""What a column says of a row: a text, or the lines of a list. "" and (): nothing."""

EXAMPLES = "examples"  # the place that is no column

_NAME = re.compile(r"\{(\w+)\}")
_SECTION = re.compile(r"\[\[(.*?)\]\]", re.S)
# Private-use characters stand for places while chat templates are filled in, which may look at braces themselves.
_OPEN, _CLOSE, _FIRST = "\ue002", "\ue003", 0xE010
_MARKED_SECTION = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.S)
_MARK = re.compile(f"[{chr(_FIRST)}-\uf8ff]")


@dataclass
class Examples:
    """In-context examples, drawn for each row by its key."""

    file: str = execution("", "JSON lines, an object each. Its digest is in the identity")
    count: int = semantic(3, "Examples that a row is shown")
    text: str = semantic("{source} => {target}", "One example; {name} stands for a key of its object")
    between: str = semantic("\n", "What stands between two examples")


@dataclass
class Format:
    """One way to ask. `text` may contain `{column}`, `[[...]]` and `{examples}`; see recap.engine.formats."""

    text: str = semantic("", "What the model is asked; {name} stands for a column")
    weight: float = semantic(1.0, "Share of the rows that get this format, relative to the other weights")
    max_tokens: int | None = semantic(None, "Longest answer in this format, in tokens; empty: the model's")
    system: str = semantic("", "System text, before the question")
    image: bool = semantic(True, "Whether the model is shown the image")
    budget: dict[str, int] = semantic({}, "Longest text of a column, in tokens; one that is not named is never cut")
    order: list[str] = semantic([], "Columns whose places are shuffled by key (the sides of a comparison)")
    examples: Examples | None = semantic(None, "In-context examples, in place of {examples}")
    otherwise: str = semantic("", "Column that is copied where one that is asked for is empty; else the row is skipped")

    sections: ClassVar[bool] = True

    def budgets(self) -> dict[str, int]:
        """Longest texts of columns, in tokens."""
        return self.budget

    def columns(self) -> list[str]:
        """Columns that the text names, in order of their first place."""
        return list(dict.fromkeys(name for name in _NAME.findall(self.text) if name != EXAMPLES))

    def needed(self) -> list[str]:
        """Columns that must not be empty: those outside sections."""
        outside = _SECTION.sub("", self.text) if self.sections else self.text
        return [name for name in self.columns() if f"{{{name}}}" in outside]


@dataclass
class PromptFormat(Format):
    """A caption job's format: its one column is `{alt}`, the image's original text, which may be empty."""

    alt_tokens: int = semantic(64, "Longest original text put in place of {alt}, in tokens; the rest is cut")

    sections: ClassVar[bool] = False

    def budgets(self) -> dict[str, int]:
        return {"alt": self.alt_tokens, **self.budget}

    def columns(self) -> list[str]:
        return ["alt"] if "{alt}" in self.text else []

    def needed(self) -> list[str]:
        return []


# --- chance -------------------------------------------------------------------------------------


def choose_format(formats: Mapping[str, Format], seed: int, key: str) -> str:
    """The format of the row `key`, drawn by weight."""
    names = list(formats)
    if len(names) == 1:
        return names[0]
    weights = np.array([formats[name].weight for name in names], dtype=np.float64)
    borders = np.cumsum(weights / weights.sum())
    index = int(np.searchsorted(borders, uniform(seed, key, "format")[0], side="right"))
    return names[min(index, len(names) - 1)]


def asked(formats: Mapping[str, Format], every: bool, samples: int, seed: int, key: str) -> list[str]:
    """Names of the answers that a row gets: its format, or all; `name#1`, `name#2`, ... for further samples of one."""
    names = list(formats) if every else [choose_format(formats, seed, key)]
    return [answer_name(name, number) for name in names for number in range(samples)]


def answer_name(name: str, sample: int) -> str:
    return f"{name}#{sample}" if sample else name


def format_name(answer: str) -> str:
    """The format of an answer that `asked` names."""
    return answer.partition("#")[0]


def request_seed(seed: int, key: str, answer: str) -> int:
    """32 bits, for servers that sample themselves. Samples of one format differ; formats of a row do not."""
    sample = answer.partition("#")[2]
    text = f"{seed}\0{key}" + (f"\0{sample}" if sample else "")
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


def shuffled(form: Format, name: str, seed: int, key: str) -> list[str]:
    """The columns in `form.order`, as they take these places for the row `key`."""
    if not form.order:
        return []
    return [form.order[at] for at in np.argsort(uniform(seed, key, f"order/{name}", len(form.order)), kind="stable")]


class Bank:
    """In-context examples of a file. UserError where it holds too few, or one without a key that the text names."""

    def __init__(self, config: Examples) -> None:
        self.config = config
        self.texts: list[str] = []
        for number, line in enumerate(_lines(config.file), 1):
            try:
                self.texts.append(_filled_in(config.text, json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"examples.file = {config.file!r}, line {number}: not an object with the keys that "
                    f"{config.text!r} names ({error!r}); correct the line."
                ) from error
        if len(self.texts) < config.count:
            raise UserError(
                f"examples.count = {config.count}: {config.file} holds {len(self.texts)}; add some, or lower it."
            )

    def draw(self, name: str, seed: int, key: str) -> list[str]:
        """Distinct examples for the row `key`."""
        left = list(range(len(self.texts))) if len(self.texts) < 1000 else None
        numbers, found = uniform(seed, key, f"examples/{name}", self.config.count), []
        taken: set[int] = set()
        for number in numbers:
            if left is not None:
                found.append(left.pop(int(number * len(left))))
                continue
            at = int(number * len(self.texts))
            while at in taken:  # rare in a large file
                at = (at + 1) % len(self.texts)
            taken.add(at)
            found.append(at)
        return [self.texts[at] for at in found]


def _filled_in(text: str, found: dict[str, Any]) -> str:
    return _NAME.sub(lambda match: str(found[match[1]]), text)


def _lines(file: str) -> list[str]:
    try:
        return [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"examples.file = {file!r}: cannot be read ({error}); correct the path.") from error


# --- filling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """A format's text with marks for its places, ready to be put into a chat template. text: with the marks."""

    text: str
    names: tuple[str, ...]

    @staticmethod
    def of(form: Format) -> Places:
        names = (*form.columns(), *([EXAMPLES] if form.examples else []))
        marks = {name: chr(_FIRST + at) for at, name in enumerate(names)}
        text = form.text
        if form.sections:
            text = _SECTION.sub(lambda m: f"{_OPEN}{m[1]}{_CLOSE}" if _NAME.search(m[1]) else m[0], text)
        return Places(_NAME.sub(lambda match: marks.get(match[1], match[0]), text), names)

    def fill(self, text: str, texts: Mapping[str, str]) -> str:
        """`text` with each place filled; sections with an empty place vanish.

        Args:
            text: `self.text`, or what a chat template made of it.
        """
        found = {chr(_FIRST + at): texts.get(name, "") for at, name in enumerate(self.names)}

        def section(match: re.Match[str]) -> str:
            return match[1] if all(found.get(mark, "") for mark in _MARK.findall(match[1])) else ""

        text = _MARKED_SECTION.sub(section, text)
        return _MARK.sub(lambda match: found.get(match[0], match[0]), text)  # once: a column's text may hold marks

    def open(self, text: str) -> str:
        """`text` with every section kept and every place empty: the longest that the words themselves can be."""
        return _MARK.sub("", text.replace(_OPEN, "").replace(_CLOSE, ""))


def said(value: Any) -> Said:
    """What a column's value says: texts, lists of texts, numbers, and else its JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def one_line(value: Said, special: Iterable[str] = ()) -> str:
    """A text on one line, a list's entries on a line each, without anything that a tokenizer takes for special.

    Args:
        special: the tokenizer's special texts.
    """
    lines = [value] if isinstance(value, str) else list(value)
    found = []
    for line in lines:
        for token in special:
            line = line.replace(token, " ")
        found.append(" ".join(line.split()))
    return "\n".join(line for line in found if line)


def check_format(where: str, form: Format) -> None:
    """UserError for the first thing in a format that cannot work."""

    def refuse(name: str, value: object, advice: str) -> UserError:
        return UserError(f"{where}.{name} = {value!r}: {advice}.")

    if not form.text.strip():
        raise refuse("text", form.text, "the prompt is empty; write one")
    if form.weight < 0 or (form.max_tokens is not None and form.max_tokens < 1):
        raise UserError(f"{where} = {form!r}: weight must be >= 0 and max_tokens >= 1; correct them.")
    columns = form.columns()
    for name, tokens in form.budgets().items():
        if tokens < 1:
            raise refuse(f"budget.{name}", tokens, "must be at least 1 token; alt_tokens in a caption job")
        if name not in columns and name in form.budget:
            raise refuse("budget", name, f"the text has no {{{name}}}; it has {_list(columns)}")
    for name in form.order:
        if name not in columns:
            raise refuse("order", name, f"the text has no {{{name}}}; it has {_list(columns)}")
    if len(set(form.order)) != len(form.order) or len(form.order) == 1:
        raise refuse("order", form.order, "name two columns or more, each once")
    if (f"{{{EXAMPLES}}}" in form.text) != (form.examples is not None):
        raise refuse("examples", form.examples, "examples and {examples} in the text need one another")
    if form.examples is not None and form.examples.count < 1:
        raise refuse("examples.count", form.examples.count, "must be at least 1")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no columns"


@functools.lru_cache(maxsize=32)
def bank_of(file: str, count: int, text: str, between: str) -> Bank:
    return Bank(Examples(file, count, text, between))


class Filling:
    """What fills a format's places for a row.

    Args:
        name: of the format.
    """

    def __init__(self, name: str, form: Format, seed: int) -> None:
        self.name, self.form, self.seed = name, form, seed
        self.places = Places.of(form)
        examples = form.examples
        self.bank = bank_of(examples.file, examples.count, examples.text, examples.between) if examples else None

    def sources(self, key: str) -> dict[str, str]:
        """The column that each place shows: its own, but for those that change places."""
        return {name: name for name in self.places.names if name != EXAMPLES} | dict(
            zip(self.form.order, shuffled(self.form, self.name, self.seed, key), strict=True)
        )

    def examples(self, key: str) -> str:
        if self.bank is None:
            return ""
        return self.bank.config.between.join(self.bank.draw(self.name, self.seed, key))
