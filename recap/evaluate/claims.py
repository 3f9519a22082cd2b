"""What captions claim, and how much of it a judge finds in the image: claimed and supported claims a caption, and the
share of claims that it denies, as audit-recap-t2i reports them (github.com/BootsofLagrangian/audit-recap-t2i, 70f976f).
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

# Beginnings that say only that there is an image.
_OPENER = re.compile(
    r"\W*(?:in\s+)?(?:the|this|an?)\s+(?:image|picture|photo|photograph|scene|illustration|drawing|painting)\b"
    r"|\W*(?:here|there)\s+(?:is|are|we\s+see|we\s+have)\b",
    re.I,
)


@dataclass(frozen=True)
class Claims:
    """claimed, supported: claims a caption, and of them those that the judge affirms. risk: of all answers to claims
    the share "no", drawn by caption; None where no claim has an answer. unsure: answers that are neither.
    """

    claimed: Mean
    supported: Mean
    risk: Mean | None
    unsure: int


def of(facts: Judged, verified: Judged) -> Claims:
    """Over all captions whose claims are known; an empty caption claims nothing. Claims without an answer are claimed,
    not supported, and no part of the risk.

    Args:
        facts: the run that took the captions apart. verified: the run that asked about each claim.
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
    """A sample's verdicts, by the number of the claim. UserError where a claim is of none of the captions."""
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
    """Which of a sample's rows a key `k#3` names; -1 for one that is of no list."""
    number = key.rpartition("#")[2] if "#" in key else ""
    return int(number) if number.isdecimal() else -1


def opener_rate(captions: Mapping[Sample, str]) -> Mean:
    """Share of captions that begin with words that say only that there is an image ("The image shows").

    >>> opener_rate({("0", "a"): "This image shows a cat.", ("0", "b"): "A cat."}).value
    0.5
    """
    return bootstrap_mean({sample: bool(_OPENER.match(caption)) for sample, caption in captions.items()})
