"""What a text claims of a scene of shapes, and whether it is so."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from itertools import permutations

from recap.worlds.shape_scenes import COLOURS, COUNTS, KINDS, PLACES, SIZES, Group, Scene, plural


@dataclass(frozen=True, slots=True)
class Claim:
    """What a caption says about one group; None where it says nothing."""

    count: int | None
    size: str | None
    colour: str | None
    kind: str
    place: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One stated fact and what is true.

    `truth` is None where the caption speaks of a group that is not there.
    """

    fact: str
    said: str
    truth: str | None

    @property
    def right(self) -> bool:
        return self.said == self.truth


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts on what was said, and the groups that were not spoken of."""

    verdicts: tuple[Verdict, ...]
    unsaid: tuple[Group, ...]

    @property
    def wrong(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.right]

    @property
    def correct(self) -> bool:
        """Something was said and nothing of it is wrong."""
        return bool(self.verdicts) and not self.wrong

    @property
    def complete(self) -> bool:
        return self.correct and not self.unsaid


_KIND = "|".join(f"{plural(kind)}|{kind}" for kind in KINDS)
_PLACE = "|".join(sorted(PLACES, key=len, reverse=True))
_CLAIM = re.compile(
    rf"\b(?:(?P<count>an?|one|two|three)\s+)?(?:(?P<size>{'|'.join(SIZES)})\s+)?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)})\s+)?(?P<kind>{_KIND})\b"
    rf"(?:\s+(?:is|are)?\s*(?:in|at)\s+the\s+(?P<place>{_PLACE})\b)?",
    re.IGNORECASE,
)
_SINGULAR = {plural(kind): kind for kind in KINDS}


def parse(text: str) -> list[Claim]:
    """The groups a caption speaks of.

    Exact on `caption`; on other texts, what of them follows the same words.
    """
    claims = []
    for match in _CLAIM.finditer(text):
        found = {name: value.lower() if value else None for name, value in match.groupdict().items()}
        number, kind = found["count"], found["kind"] or ""
        count = None if number is None else 1 if number in ("a", "an") else COUNTS.index(number)
        claims.append(Claim(count, found["size"], found["colour"], _SINGULAR.get(kind, kind), found["place"]))
    return claims


def _verdicts(claim: Claim, group: Group | None) -> list[Verdict]:
    said = {name: value for name, value in asdict(claim).items() if value is not None}
    return [
        Verdict(name, str(value), None if group is None else str(getattr(group, name))) for name, value in said.items()
    ]


def judge(text: str, scene: Scene) -> Judgement:
    """Which stated facts are right.

    Claims are paired with groups in the way that makes the fewest facts wrong.
    """
    claims = parse(text)
    slots: list[int | None] = [*range(len(scene.groups)), *[None] * len(claims)]
    best: tuple[int, list[Verdict], list[Group]] | None = None
    for pairing in set(permutations(slots, len(claims))) if len(claims) <= 4 else [tuple(slots[: len(claims)])]:
        verdicts = [
            verdict
            for claim, index in zip(claims, pairing, strict=True)
            for verdict in _verdicts(claim, None if index is None else scene.groups[index])
        ]
        wrong = sum(not verdict.right for verdict in verdicts)
        if best is None or wrong < best[0]:
            best = (
                wrong,
                verdicts,
                [group for index, group in enumerate(scene.groups) if index not in pairing],
            )
    assert best is not None
    ground = re.search(r"background is (\w+)", text, re.IGNORECASE)
    background = [Verdict("background", ground[1].lower(), scene.background)] if ground else []
    return Judgement((*best[1], *background), tuple(best[2]))


def facts(text: str) -> list[str]:
    """What a text says of shapes, one fact a phrase; each names what it is about, so that it can be judged alone.

    >>> facts("Two small red circles are in the top left. The background is white.")
    ['red circle', 'two red circles', 'small red circle', 'red circle in the top left', 'The background is white']
    """
    found = []
    for claim in parse(text):
        named = " ".join(filter(None, (claim.colour, claim.kind)))
        found.append(named)
        if claim.count:
            plain = " ".join(filter(None, (claim.colour, plural(claim.kind) if claim.count > 1 else claim.kind)))
            found.append(f"{COUNTS[claim.count]} {plain}")
        found += [f"{claim.size} {named}"] if claim.size else []
        found += [f"{named} in the {claim.place}"] if claim.place else []
    ground = re.search(r"background is (\w+)", text, re.IGNORECASE)
    return [*dict.fromkeys(found), *([f"The background is {ground[1].lower()}"] if ground else [])]
