"""CrossCheckGPT: how much of a caption other captioners do not confirm (arXiv 2405.13684).

Explicit: whether the other captioners' captions support a sentence. Implicit: whether the other models, shown the
image, say that the sentence is true. The paper weights the others by their confidence; here they all have the same
weight.
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
    """score: from 0 (all is confirmed) to 1. Answers are averaged over the other captioners, then over a caption's
    sentences, then over captions.
    each: the score by each of the others alone. sentences: how many have an answer.
    """

    score: Mean
    each: dict[str, Mean]
    sentences: int


def compute(evidence: Mapping[str, Judged]) -> CrossChecked:
    """The score of one captioner.

    Args:
        evidence: by name of another captioner, the run that checked each sentence against it or its captions.
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
