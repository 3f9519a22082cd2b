"""Length and diversity of captions: words, vocabulary, distinct n-grams (Li et al. 2016, arXiv 1510.03055) and
self-BLEU (Zhu et al. 2018, arXiv 1802.01886).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recap.evaluate.intervals import Mean, bootstrap_mean

SELF_BLEU_SAMPLE = 500  # captions that are compared with each other; the cost grows with the square
_ORDERS = 4


@dataclass(frozen=True)
class Diversity:
    """words: words of a caption. vocabulary: number of different words. distinct: share of n-grams that are different,
    for n from 1 to 4. self_bleu: mean over `compared` captions, which are chosen by a hash of their key. n: captions.
    """

    n: int
    words: Mean
    vocabulary: int
    distinct: list[float]
    self_bleu: Mean | None
    compared: int


def compute(captions: Mapping[Any, str]) -> Diversity:
    """The diversity of at least one caption. Words are in lower case, split at all but letters, digits and apostrophes.

    Args:
        captions: by key, or by shard and key.
    """
    cut = {key: re.findall(r"[\w']+", text.lower()) for key, text in captions.items()}
    grams = [
        Counter(gram for words in cut.values() for gram in _grams(words, order)) for order in range(1, _ORDERS + 1)
    ]
    chosen = sorted(cut, key=_drawn)[:SELF_BLEU_SAMPLE]
    alike = _self_bleu([cut[key] for key in chosen])
    return Diversity(
        len(cut),
        bootstrap_mean({key: len(words) for key, words in cut.items()}),
        len(grams[0]),
        [len(found) / max(found.total(), 1) for found in grams],
        bootstrap_mean(dict(zip(chosen, alike, strict=True))) if alike else None,
        len(alike),
    )


def _drawn(key: Any) -> bytes:
    return hashlib.sha256((key if isinstance(key, str) else "/".join(key)).encode()).digest()


def _grams(words: list[str], order: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + order]) for at in range(len(words) - order + 1)]


def _self_bleu(texts: list[list[str]]) -> list[float]:
    """BLEU-4 of each text against all others: high where all say the same."""
    if len(texts) < 2:
        return []
    # For each n-gram the two largest counts in one text: leaving one text out, the largest is one of these two.
    most: list[dict[tuple[str, ...], list[int]]] = [{} for _ in range(_ORDERS)]
    counted = [[Counter(_grams(words, order)) for order in range(1, _ORDERS + 1)] for words in texts]
    for text in counted:
        for order, found in enumerate(text):
            for gram, count in found.items():
                top = most[order].setdefault(gram, [0, 0])
                top[:] = sorted([*top, count], reverse=True)[:2]
    lengths = [len(words) for words in texts]
    return [_against_others(text, most, at, lengths) for at, text in enumerate(counted)]


def _against_others(
    text: list[Counter[tuple[str, ...]]], most: list[dict[tuple[str, ...], list[int]]], at: int, lengths: list[int]
) -> float:
    logs = 0.0
    for order, found in enumerate(text):
        right = 0
        for gram, count in found.items():
            first, second = most[order][gram]
            right += min(count, second if count == first else first)
        if not right:
            return 0.0
        logs += math.log(right / found.total()) / _ORDERS
    length = lengths[at]
    others = lengths[:at] + lengths[at + 1 :]
    nearest = min((abs(other - length), other) for other in others)[1]
    return math.exp(logs) * min(1.0, math.exp(1 - nearest / length))
