"""CrossCheckGPT: how much of what a captioner says other captioners do not confirm (arXiv 2405.13684).

Explicit: whether the others' captions support a sentence. Implicit: whether the others themselves, shown the image, say
that it is true. The paper weighs the others by how sure each is of itself; here they count the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpc.base.errors import UserError
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judged import Judged
from recap.evaluate.text_sets import Sample

FIELDS = ["verdict"]
UNSUPPORTED = {"yes": 0.0, "unsure": 0.5, "no": 1.0}


@dataclass(frozen=True)
class CrossChecked:
    """score: from 0, all is confirmed, to 1: the mean over captions of the mean over their sentences of the mean over
    the others. each: by one of the others alone. sentences: with an answer.
    """

    score: Mean
    each: dict[str, Mean]
    sentences: int


def of(evidence: Mapping[str, Judged]) -> CrossChecked:
    """Of one captioner.

    Args:
        evidence: by another captioner's name, the run that asked it, or its captions, about each sentence.
    """
    found: dict[Sample, dict[str, list[float]]] = {}
    each = {}
    for name, judged in evidence.items():
        captions: dict[Sample, float] = {}
        for sample, rows in judged.of_samples().items():
            values = [_value(row["verdict"], judged) for row in rows]
            captions[sample] = sum(values) / len(values)
            for row, value in zip(rows, values, strict=True):
                found.setdefault(sample, {}).setdefault(row["key"], []).append(value)
        each[name] = bootstrap_mean(captions)
    sentences = {
        sample: [sum(values) / len(values) for values in caption.values()] for sample, caption in found.items()
    }
    means = {sample: sum(values) / len(values) for sample, values in sentences.items()}
    return CrossChecked(bootstrap_mean(means), each, sum(map(len, sentences.values())))


def _value(verdict: str, judged: Judged) -> float:
    if verdict not in UNSUPPORTED:
        raise UserError(
            f"evaluate: {judged.run} has the verdict {verdict!r}: expected one of {', '.join(UNSUPPORTED)}."
        )
    return UNSUPPORTED[verdict]
