"""DCScore: precision and recall of the facts in a caption (arXiv 2503.07906).

Facts are identified by their number, not by their words. The published script (DeCapBench, 9f3fb10) fails where the
judge rewords a fact, and divides by zero where no fact, or none that describes the image, is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from recap.evaluate.claims import number_of
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judged import Judged, name_of
from recap.evaluate.text_sets import Sample, TextSet, join_by_sample

FACTS, VERIFIED, MATCHED = ["facts", "describes"], ["verdict"], ["match"]


@dataclass(frozen=True)
class Fact:
    """One fact of a caption.

    right: the judge finds it in the image. describes: it describes the image and is no inference.
    match: number of the reference's fact that says the same, from 1; 0 where none does.
    """

    right: bool
    match: int = 0
    describes: bool = True


@dataclass(frozen=True)
class Scores:
    """Precision and recall of one caption, from 0 to 1."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        return 2 * self.precision * self.recall / (self.precision + self.recall) if self.precision else 0.0


def scores(facts: Sequence[Fact], references: int) -> Scores:
    """Precision is the share of facts that are right. Recall is the share of the reference's facts that the caption
    has. Several facts that match one fact of the reference share it; right facts that the reference lacks are counted
    as if it had them. Both are 0 for a caption without facts.

    Args:
        references: how many facts the reference has.

    >>> scores([Fact(True, 1), Fact(True, 1), Fact(True), Fact(False)], 4)
    Scores(precision=0.75, recall=0.4)
    """
    told = Counter(fact.match for fact in facts if fact.match)
    right = [fact for fact in facts if fact.right]
    more = sum(not fact.match for fact in right)
    shares = sum(1 / told[fact.match] for fact in right if fact.match)
    total = references + more
    return Scores(len(right) / len(facts) if facts else 0.0, (shares + more) / total if total else 0.0)


@dataclass(frozen=True)
class DCScore:
    """Means over images, times 100.

    score: mean of the F1 over all facts and of the F1 over facts that describe the image.
    trials: the largest number of answers a fact has; an image's scores are means over them.
    unknown: captions whose facts or answers are missing, which are left out.
    bare: images whose reference has no facts, which are left out.
    lost: facts without an answer, which are left out of their captions.
    missing: images without a caption, which count 0, as empty captions do.
    """

    score: Mean
    precision: Mean
    recall: Mean
    f1: Mean
    f1_describing: Mean
    trials: int
    unknown: int
    bare: int
    lost: int
    missing: int


def compute(facts: Judged, verified: Judged, matched: Judged, references: TextSet) -> DCScore:
    """DCScore over all images that have a reference.

    Args:
        facts: the run that listed each caption's facts.
        verified, matched: the runs that asked whether each fact is right, and which of the reference's facts it
            matches. Several answers for a fact (`samples`) are as many trials.
        references: the facts of the references.

    Raises:
        UserError: the runs do not belong to the same captions.
    """
    own = facts.of_rows()
    right, match = _answers(verified, "verdict", own, facts), _answers(matched, "match", own, facts)
    names, wanted = join_by_sample(facts.as_text_set(), references)
    back = {name_of(sample): sample for sample in facts.samples()}
    rows: dict[Sample, list[float]] = {}
    unknown = lost = missing = 0
    trials = 1
    for name, listed in wanted.items():
        sample = back.get(names.get(name, ""))
        if sample is None or sample in facts.empties:
            missing += sample is None
            rows[sample or name] = [0.0] * 5
        elif sample not in own:
            unknown += 1
        else:
            found = _trials(own[sample], right.get(sample, {}), match.get(sample, {}), len(listed))
            lost += len(own[sample]["facts"]) - len(right.get(sample, {}).keys() & match.get(sample, {}).keys())
            unknown += not found
            trials = max(trials, len(found))
            rows |= {sample: np.mean(found, axis=0).tolist()} if found else {}
    if not rows:
        raise UserError(f"evaluate: no caption of {facts.run} has facts with answers in both judges' runs.")
    score, precision, recall, f1, describing = (
        bootstrap_mean({sample: 100 * row[at] for sample, row in rows.items()}) for at in range(5)
    )
    return DCScore(
        score, precision, recall, f1, describing, trials, unknown, references.left_out, lost, missing
    )  # fmt: skip


def _answers(
    run: Judged, field: str, own: dict[Sample, dict[str, Any]], facts: Judged
) -> dict[Sample, dict[int, list[Any]]]:
    """By sample: all answers about each fact, by the fact's number."""
    found: dict[Sample, dict[int, list[Any]]] = {}
    for sample, rows in run.of_samples().items():
        for row in rows:
            number = number_of(row["key"])
            if sample not in own or not 0 <= number < len(own[sample]["facts"]):
                raise UserError(
                    f"evaluate: {run.run} has an answer about {row['key']} of shard {sample[0]}, which is no fact of "
                    f"{facts.run}. Name the run that its facts were taken from."
                )
            others = [other.get(field) for other in row.get("alternatives") or []]
            found.setdefault(sample, {})[number] = [row[field], *others]
    return found


def _trials(
    own: dict[str, Any], right: dict[int, list[str]], match: dict[int, list[int]], references: int
) -> list[list[float]]:
    """[score, precision, recall, F1, F1 of describing facts] of each trial. Facts without both answers are left out."""
    numbers = sorted(right.keys() & match.keys())
    if own["facts"] and not numbers:
        return []
    describes = [str(said).strip().lower() in ("yes", "1", "true") for said in own["describes"]]
    found = []
    for one, other in product(
        range(max((len(right[n]) for n in numbers), default=1)), range(max((len(match[n]) for n in numbers), default=1))
    ):
        pairs = [(n, _at(right[n], one), _at(match[n], other)) for n in numbers]
        listed = [
            Fact(said == "yes", same if 0 < same <= references else 0, describes[n])
            for n, said, same in pairs
            if said is not None and same is not None
        ]
        every, some = scores(listed, references), scores([fact for fact in listed if fact.describes], references)
        found.append([(every.f1 + some.f1) / 2, every.precision, every.recall, every.f1, some.f1])
    return found


def _at(answers: list[Any], place: int) -> Any:
    return answers[place] if place < len(answers) else None
