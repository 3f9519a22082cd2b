"""Reads a judge's rating, 1 to 5, from a free-form answer. Torch-free."""

from __future__ import annotations

import json
import re
from typing import Any

_WORDS = {"one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}
_THOUGHTS = re.compile(r"^.*</think>", re.I | re.S)
_SCALE = re.compile(  # "(1-5)", "on a scale of 1 to 5", "out of 5", "/5": no rating
    r"[(\[]?\s*(?:on\s+)?(?:an?\s+|the\s+)?(?:scale\s+)?(?:of|from|between)?\s*(?<![\d.])1\s*(?:-|–|—|to|and|through)\s*5"
    r"(?![\d]|[.,]\d)\s*[)\]]?|[(\[]?\s*\bout\s+of\s+(?:5|five)\b(?!\.\d)\s*[)\]]?|\s*/\s*5\b(?!\.\d)",
    re.I,
)
_NUMBER = r"(?<![\d.,-])(\d+(?:[.,]\d+)?|one|two|three|four|five)\b(?!\s*(?:-|–|—|~|to\b|or\b)\s*\d)"
_BETWEEN = r"[\s:=*\"'`_#>()\[\]{}]*(?:[-–—]\s+)?[*\"'`_\s]*"
_LABELLED = re.compile(rf"(?:rating|score)(?![a-z])[\s*\"'`_()\[\]]*[:=]{_BETWEEN}{_NUMBER}", re.I)
_SAID = re.compile(
    r"(?:rating|score)(?![a-z])(?:\s+(?:for|of)\s+(?:this|the|it)\b[\w ]{0,30}?)?"
    rf"(?:\s+(?:is|of|would\s+be|as|a|an))*{_BETWEEN}{_NUMBER}"
    rf"|\b(?:rate|give)\b[^.\d\n]{{0,60}}?{_NUMBER}",
    re.I,
)
_SCALED = re.compile(rf"{_NUMBER}[\s*_`]*(?:/|out\s+of)\s*(?:5|five)\b(?!\.\d|\s+of\b)", re.I)
_BARE = re.compile(rf"[^\w-]*{_NUMBER}(?:\s*(?:stars?|points?))?[\W_]*", re.I)


def parse_rating(answer: str) -> int | None:
    """The rating from 1 to 5 that an answer gives; None without one, or with one that is not clear.

    The first of these that is found counts: JSON with a "rating"; the last "Rating: 3"; "I rate it a 3"; "3/5" or "3
    out of 5" (for these two, all such numbers must agree); a bare 3, alone or on the first or the last line. A scale
    ("1-5", "out of 5") is no rating, nor is a range ("3 - 4"), 3.5 or 7. Text before </think> is ignored.

    >>> [parse_rating(a) for a in ('{"rating": 4}', "Rating (1-5): 3.", "**Rating:** 5/5", "2", "Rating: 7", "3 - 4")]
    [4, 3, 5, 2, None, None]
    """
    text = _THOUGHTS.sub("", answer).strip()
    found, given = _of_json(text)
    if found:
        return given
    scaled = {_whole(number) for number in _SCALED.findall(text)}
    text = _SCALE.sub(" ", text)
    if labelled := _LABELLED.findall(text):
        return _whole(labelled[-1])
    if re.search(r"(?:rating|score)(?![a-z])[\s*\"'`_()\[\]]*[:=]\s*[-\d]", text, re.I):
        return None  # a range, or a negative number
    said = {_whole(first or second) for first, second in _SAID.findall(text)}
    if said := said or scaled:
        return said.pop() if len(said) == 1 else None
    lines = [line for line in text.splitlines() if line.strip()]
    for part in (text, *lines[:1], *lines[-1:]):
        if match := _BARE.fullmatch(part.strip()):
            return _whole(match[1])
    return None


def _of_json(text: str) -> tuple[bool, int | None]:
    """(whether the answer has a JSON object with a rating, the rating or None where it is not valid)"""
    match = re.search(r"\{[^{}]*\}", text)
    for candidate in (text, match[0] if match else ""):
        try:
            found: Any = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            named = {str(key).lower(): value for key, value in found.items()}
            if "rating" in named:
                value = named["rating"]
                return True, None if isinstance(value, bool) else _whole(_SCALE.sub("", str(value)))
    return False, None


def _whole(number: str) -> int | None:
    """A number in digits or words as an integer from 1 to 5, else None."""
    try:
        value = _WORDS.get(number.lower().strip()) or float(number.replace(",", "."))
    except ValueError:
        return None
    return int(value) if value in (1, 2, 3, 4, 5) else None
