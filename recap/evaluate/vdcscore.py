"""VDCscore: how many questions about an image can be answered from its caption alone (arXiv 2410.03051).

The published script leaves out captions without any right answer, and those that it fails on; here they count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpc.base.errors import UserError
from recap.data.headers import without_dot_slash
from recap.data.rows import parent_of
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judged import Judged
from recap.evaluate.text_sets import Sample

ANSWERED, GRADED = ["caption"], ["verdict", "score"]
_MOST = 5


@dataclass(frozen=True)
class Aspect:
    """Means over captions. accuracy: share of a caption's questions that are answered right, in %. score: from 0 to 5.
    empty: questions about empty or missing captions, which count as answered wrong.
    """

    accuracy: Mean
    score: Mean
    questions: int
    empty: int


def compute(answered: Judged, graded: Judged) -> Aspect:
    """The scores of the captions of one aspect (short, main object, background, detailed).

    Args:
        answered: the run that answers the questions from the captions.
        graded: the run that grades these answers. Answers without a grade are left out.
    """
    found: dict[Sample, list[tuple[bool, int]]] = {}
    for sample, rows in graded.of_samples().items():
        for row in rows:
            if not 0 <= row["score"] <= _MOST:
                raise UserError(
                    f"evaluate: {graded.run}: key {row['key']} has the score {row['score']}: expected 0 to {_MOST}."
                )
            found.setdefault(sample, []).append((row["verdict"].strip().lower() == "yes", row["score"]))
    for shard, key in answered.empties:
        found.setdefault((shard, without_dot_slash(parent_of(key))), []).append((False, 0))
    return Aspect(
        bootstrap_mean({sample: 100 * _mean([right for right, _ in grades]) for sample, grades in found.items()}),
        bootstrap_mean({sample: _mean([score for _, score in grades]) for sample, grades in found.items()}),
        sum(map(len, found.values())),
        len(answered.empties),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
