"""Faults that a caption's text shows by itself: fixed names for a lint column. Torch-free, pure functions."""

from __future__ import annotations

import re

_TWO_IMAGES = re.compile(r"\b(?:first|second|third|other|left|right|two|both)\s+(?:image|picture|photo)s?\b", re.I)
_LEAD_IN = re.compile(
    r"^(?:sure|certainly|of course|here(?:'s| is)|(?:in )?(?:this|the) (?:image|picture|photo))\b",
    re.I,
)
_LEAKED = re.compile(r"(?:\b(?:USER|ASSISTANT|SYSTEM)\s*:|<\/?[a-z_|]+\|?>|<\||\[/?INST\])")
_BYTES = re.compile(r"^b(['\"]).*\1$", re.S)
_REFUSAL = re.compile(r"\b(?:I'm sorry|I cannot|I can't|as an AI)\b", re.I)
_QUOTES = "\"'“”‘’`"

NAMES = (
    "empty",
    "two images",
    "lead-in",
    "leaked prompt",
    "repetition",
    "stray quotes",
    "bytes literal",
    "refusal",
    "cut",
)


def lint(text: str, prompt: str = "", finish: str = "stop") -> list[str]:
    """Names of the faults of a caption, in the order of `NAMES`.

    Args:
        text: the caption.
        prompt: what the model was asked; a caption that repeats eight words of it in a row has leaked it.
        finish: why the caption ended; "length" with no full sentence at the end is named "cut".
    """
    stripped = text.strip()
    if not stripped:
        return ["empty"]
    found = {
        "two images": bool(_TWO_IMAGES.search(stripped)),
        "lead-in": bool(_LEAD_IN.match(stripped)),
        "leaked prompt": bool(_LEAKED.search(stripped)) or _shares_words(stripped, prompt, 8),
        "repetition": repeats(stripped),
        "stray quotes": _stray_quotes(stripped),
        "bytes literal": bool(_BYTES.match(stripped)),
        "refusal": bool(_REFUSAL.search(stripped)),
        "cut": finish == "length" and stripped[-1] not in ".!?" + _QUOTES,
    }
    return [name for name in NAMES if found.get(name)]


def repeats(text: str, times: int = 3, most: int = 12) -> bool:
    """Whether a run of 2 to `most` words comes `times` times in a row, or one word five times."""
    words = text.lower().split()
    for length in range(1, most + 1):
        same = 0  # how many words in a row equal the word `length` before them
        needed = length * (times - 1) if length > 1 else 4
        for i in range(length, len(words)):
            same = same + 1 if words[i] == words[i - length] else 0
            if same >= needed:
                return True
    return False


def _stray_quotes(text: str) -> bool:
    """Quotes around the whole caption, or an odd number of double quotes."""
    whole = len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES and not any(q in text[1:-1] for q in _QUOTES)
    return whole or text.count('"') % 2 == 1


def _shares_words(text: str, prompt: str, count: int) -> bool:
    words, asked = (re.findall(r"\w+", part.lower()) for part in (text, prompt))
    runs = {tuple(asked[i : i + count]) for i in range(len(asked) - count + 1)}
    return any(tuple(words[i : i + count]) in runs for i in range(len(words) - count + 1))
