"""How many claims a caption makes, how many of them a judge affirms, and which share it denies, as audit-recap-t2i
reports (github.com/BootsofLagrangian/audit-recap-t2i, 70f976f).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hpc.base.errors import UserError
from recap.evaluate.intervals import Mean, bootstrap_mean, bootstrap_ratio
from recap.evaluate.judged import Judged
from recap.evaluate.text_sets import Sample

FACTS, VERDICTS = ["facts"], ["verdict"]

# Beginnings of captions that say only that there is an image.
_OPENER = re.compile(
    r"\W*(?:in\s+)?(?:the|this|an?)\s+(?:image|picture|photo|photograph|scene|illustration|drawing|painting)\b"
    r"|\W*(?:here|there)\s+(?:is|are|we\s+see|we\s+have)\b",
    re.I,
)


@dataclass(frozen=True)
class Claims:
    """Means over captions.

    claimed, supported: number of claims in a caption, and of those that the judge affirms.
    risk: share of "no" among all answers to claims, resampled by caption; None where no claim has an answer.
    unsure: how many answers are neither yes nor no.
    """

    claimed: Mean
    supported: Mean
    risk: Mean | None
    unsure: int


def compute(facts: Judged, verified: Judged) -> Claims:
    """The claims of all captions whose claims are known. An empty caption has none. A claim without an answer counts as
    claimed, not as supported, and not in the risk.

    Args:
        facts: the run that listed each caption's claims. verified: the run that asked about each claim.
    """
    verdicts = verdicts_of(facts, verified)
    said = {sample: len(row["facts"]) for sample, row in facts.of_rows().items()}
    counted = {sample: Counter(verdicts.get(sample, {}).values()) for sample in said}
    nothing = dict.fromkeys(facts.empties, 0)
    return Claims(
        bootstrap_mean(said | nothing),
        bootstrap_mean({sample: count["yes"] for sample, count in counted.items()} | nothing),
        bootstrap_ratio({sample: (count["no"], count.total()) for sample, count in counted.items()}),
        sum(count["unsure"] for count in counted.values()),
    )


def verdicts_of(facts: Judged, verified: Judged) -> dict[Sample, dict[int, str]]:
    """By sample: the verdict on each claim, by the claim's number. UserError where a claim belongs to no caption."""
    known = facts.of_rows()
    found: dict[Sample, dict[int, str]] = {}
    for sample, rows in verified.of_samples().items():
        for row in rows:
            number = number_of(row["key"])
            if sample not in known or number >= len(known[sample]["facts"]):
                raise UserError(
                    f"evaluate: {verified.run} has a verdict on {row['key']} of shard {sample[0]}, which is no claim "
                    f"of {facts.run}. Name the run that its claims were taken from."
                )
            found.setdefault(sample, {})[number] = row["verdict"]
    return found


def number_of(key: str) -> int:
    """The number in the key of a list's row: 3 for `k#3`; -1 for other keys."""
    number = key.rpartition("#")[2] if "#" in key else ""
    return int(number) if number.isdecimal() else -1


def opener_rate(captions: Mapping[Sample, str]) -> Mean:
    """Share of captions with an opener that says only that there is an image ("The image shows").

    >>> opener_rate({("0", "a"): "This image shows a cat.", ("0", "b"): "A cat."}).value
    0.5
    """
    return bootstrap_mean({sample: bool(_OPENER.match(caption)) for sample, caption in captions.items()})
