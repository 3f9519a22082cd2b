"""OpenCHAIR: the share of the objects in captions that are not in the image (arXiv 2312.03631)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from recap.evaluate.intervals import Mean, bootstrap_ratio
from recap.evaluate.judged import Judged

FIELDS = ["verdict"]


@dataclass(frozen=True)
class Hallucinated:
    """rate: no / (yes + no) over all objects, resampled by caption; None where there is neither answer.
    yes, no, unsure: numbers of answers. captions: how many have an object that was asked about.
    """

    rate: Mean | None
    yes: int
    no: int
    unsure: int
    captions: int


def compute(asked: Judged) -> Hallucinated:
    """The rate of a judge's answers about objects. (The published script fails where no answer is "no".)"""
    captions = {sample: Counter(row["verdict"] for row in rows) for sample, rows in asked.of_samples().items()}
    all_of_them: Counter[str] = sum(captions.values(), Counter())
    rate = bootstrap_ratio({sample: (count["no"], count["yes"] + count["no"]) for sample, count in captions.items()})
    return Hallucinated(rate, all_of_them["yes"], all_of_them["no"], all_of_them["unsure"], len(captions))
