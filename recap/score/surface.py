"""What can be counted in a text without a model: lengths, the opening words, readability, faults."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from recap.data.texts import text_digest
from recap.engine.decode import Geometry
from recap.engine.lint import lint
from recap.score.scorer import TEXTS, ScoreInput, text_field
from recap.score.settings import SurfaceScore
from recap.text_policy import sentences

_READABILITY = ("flesch_kincaid", "ari", "coleman_liau", "smog")


class SurfaceScorer:
    """See recap.score.scorer.Scorer. Words are what white space separates, as for the published column `re_length`."""

    needs = frozenset({TEXTS})
    geometries: list[Geometry] = []

    def __init__(self, config: SurfaceScore, texts: Sequence[str]) -> None:
        self.config, self.texts = config, list(texts)
        kinds: dict[str, pa.DataType] = {
            "words": pa.int32(), "characters": pa.int32(), "sentences": pa.int32(), "opener": pa.string(),
            "lint": pa.list_(pa.string()), "digest": pa.int64(),
        }  # fmt: skip
        if config.readability:
            kinds |= dict.fromkeys(_READABILITY, pa.float32())
        if config.leaks:
            kinds["leaks"] = pa.int32()
        self.fields = [(text_field(kind, text), type_) for text in texts for kind, type_ in kinds.items()]

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> str:
        return "words, sentences, openers, faults" + (", readability" if self.config.readability else "")

    def setup(self, device: str) -> None: ...

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        return [
            {
                text_field(kind, name): value
                for name, text in row.texts.items()
                for kind, value in self._text_values(text).items()
            }
            for row in rows
        ]

    def _text_values(self, text: str) -> dict[str, Any]:
        words, parts = text.split(), sentences(text)
        found: dict[str, Any] = {
            "words": len(words), "characters": len(text.strip()), "sentences": len(parts),
            "opener": opener(text), "lint": lint(text), "digest": text_digest(text),
        }  # fmt: skip
        if self.config.readability:
            found |= readability(words, len(parts))
        if self.config.leaks:
            lower = text.lower()
            found["leaks"] = sum(leak.lower() in lower for leak in self.config.leaks)
        return found


def opener(text: str) -> str:
    """The first two words, in lower case without punctuation.

    >>> opener('"The image, shows a cat'), opener("Cat")
    ('the image', 'cat')
    """
    return " ".join(re.findall(r"[\w']+", text.lower())[:2])


def readability(words: Sequence[str], sentence_count: int) -> dict[str, float]:
    """School grades of an English text: Flesch-Kincaid (1975), ARI (1967), Coleman-Liau (1975), SMOG (1969).

    >>> {k: round(v, 2) for k, v in readability("The cat sat on the mat.".split(), 1).items()}
    {'flesch_kincaid': -1.45, 'ari': -5.09, 'coleman_liau': -4.07, 'smog': 3.13}
    """
    bare = [cleaned for word in words if (cleaned := re.sub(r"[\W_]+", "", word))]
    if not bare or not sentence_count:
        return {}
    letters = sum(map(len, bare))
    counts = [syllables(word) for word in bare]
    a_sentence, hard = len(bare) / sentence_count, sum(count >= 3 for count in counts)
    return {
        "flesch_kincaid": 0.39 * a_sentence + 11.8 * sum(counts) / len(bare) - 15.59,
        "ari": 4.71 * letters / len(bare) + 0.5 * a_sentence - 21.43,
        "coleman_liau": 5.88 * letters / len(bare) - 29.6 * sentence_count / len(bare) - 15.8,
        "smog": 1.0430 * (hard * 30 / sentence_count) ** 0.5 + 3.1291,
    }


def syllables(word: str) -> int:
    """Runs of vowels of an English word, without a silent final e. A rule of thumb, as readability formulas use.

    >>> [syllables(word) for word in ("cat", "table", "make", "banana", "hmm")]
    [1, 2, 1, 3, 1]
    """
    lower = word.lower()
    count = len(re.findall(r"[aeiouy]+", lower))
    silent = lower.endswith("e") and not lower.endswith(("le", "ee")) and count > 1
    return max(count - silent, 1)
