"""Reads the answer to a question of MMMU from a model's words, by the rules of its published evaluator
(github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py).

There are two differences, which are stated with the scores. Where the evaluator would guess at random, further rules
are tried, and if they find nothing, the answer is wrong. And an open answer must occur as whole words, not inside of
others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"
_KEYS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)  # an answer follows


def option(said: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, None where it names none.

    >>> option("A dog is shown, so the answer is B.", ["a cat", "a dog"]), option("**B**", ["a cat", "a dog"])
    ('B', 'B')
    """
    letters, options = LETTERS[: len(options)], options[: len(LETTERS)]
    for mark in ",.!?;:'":
        said = said.strip(mark)
    said = f" {said} "
    ways = [{letter: said.rfind(form.format(letter)) for letter in letters} for form in ("({})", " {} ")]
    quoted = {letter: said.lower().rfind(text.lower()) for letter, text in zip(letters, options, strict=True) if text}
    if len(said.split()) > 5:
        ways.append(quoted)
    for way in ways:
        if max(way.values(), default=-1) >= 0:
            return max(way, key=lambda letter: way[letter])  # the last that is named
    return _read_further(said, letters, quoted)


def _read_further(said: str, letters: str, quoted: dict[str, int]) -> str | None:
    """Rules where the evaluator would guess: a letter in other marks, the one option that is quoted, a lower-case
    letter."""
    if found := re.findall(rf"(?<![A-Za-z0-9'’])([{letters}])(?![A-Za-z0-9'’])", said):
        return found[-1]
    named = [letter for letter, at in quoted.items() if at >= 0]
    if len(named) == 1:
        return named[0]
    small = re.search(rf"(?:^|\b(?:option|answer|choice)\b)(?:\W|\bis\b)*([{letters.lower()}])\W*$", said.strip())
    return small[1].upper() if small and not named else None


def open_answer(said: str, answers: Sequence[str]) -> bool:
    """Whether a model's conclusion contains one of the right answers: a number to two decimals, or words.

    >>> open_answer("3 cats and 5 dogs, so the result is 8", ["8"]), open_answer("3 and 5, so it is 8", ["3"])
    (True, False)
    """
    parts = _key_parts(said)
    numbers = {round(number, 2) for part in parts for number in _numbers(part)}
    for answer in answers:
        if re.fullmatch(r"\W*[\d.,]+\W*", answer) and (wanted := _numbers(answer)):
            if round(wanted[0], 2) in numbers:
                return True
        elif any(re.search(rf"(?<!\w){re.escape(answer.strip().lower())}(?!\w)", part) for part in parts):
            return True
    return False


def _key_parts(said: str) -> list[str]:
    """For each line the text after the last word that announces an answer, or the whole line where there is none."""
    said = said.strip().strip(".").lower()
    lines = said.split("\n")
    found = []
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        tails = [line.split(key)[-1].strip() for key in keys if key in line]
        shortest = min(filter(None, tails), key=len, default="")
        if shortest.strip(":,.!?;'"):
            found.append(shortest)
    return found or [said]


def _numbers(text: str) -> list[float]:
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return [float(found) for found in re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?", plain)]
