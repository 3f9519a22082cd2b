"""The content of an arena's page: captions of several captioners on one set of images, the suite's metrics of each,
judged battles between them, and verdicts on their statements.

A metric that cannot be measured, because no judge has answered, is listed with its reason; the others are shown.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from recap.data.headers import without_dot_slash
from recap.data.rows import parent_of
from recap.evaluate import battles, crosscheck, judged, metric_agreement, suite, text_sets, win_rates
from recap.evaluate.claims import number_of
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.text_sets import Sample, TextSet
from recap.text_policy import sentences

BATTLES = "battles"


class Images:
    """The images of all captioners, by name. They are matched by shard and key where all captions have shards in
    common, else by key alone.

    Raises:
        UserError: keys repeat without shards in common; a key belongs to two images; or no image is common to all.
    """

    def __init__(self, sets: Mapping[str, TextSet]) -> None:
        filled = [one for one in sets.values() if one.texts]
        self.by_shard = bool(filled) and bool(set.intersection(*(one.shards for one in filled)))
        if not self.by_shard:
            for one in filled:
                one.by_key()
        counts = Counter(sample for one in filled for sample in map(self._sample, one.texts))
        if len(filled) > 1 and counts and max(counts.values()) < 2:
            places = " and ".join(str(one.place) for one in filled[:2])
            raise UserError(f"arena: no image has a caption of two captioners. Are {places} of the same data set?")
        keys = Counter(key for _, key in counts)
        self._names = {s: s[1] if keys[s[1]] == 1 else "/".join(filter(None, s)) for s in counts}
        self._by_key = {key: self._names[shard, key] for shard, key in counts if keys[key] == 1}
        self._samples = {name: sample for sample, name in self._names.items()}
        self.names = list(self._samples)
        self._check(filled)

    def _sample(self, sample: Sample) -> Sample:
        return sample if self.by_shard else ("", sample[1])

    def sample(self, name: str) -> Sample:
        """Shard and key of an image."""
        return self._samples[name]

    def find(self, sample: Sample) -> str | None:
        """The name of a sample's image; None where the captioners do not share it."""
        return self._names.get(self._sample(sample)) or self._by_key.get(sample[1])

    def _check(self, sets: Sequence[TextSet]) -> None:
        seen: dict[str, tuple[str, TextSet]] = {}
        for one in sets:
            for sample, digest in one.digests.items():
                name = self.find(sample) if sample in one.texts else None
                if name and seen.setdefault(name, (digest, one))[0] != digest:
                    raise UserError(
                        f"arena: {name} is one image in {seen[name][1].place} and another in {one.place}: captions of "
                        "different images cannot be compared."
                    )


@dataclass(frozen=True)
class Captioner:
    """One captioner. texts: captions by image. samples: shard and key by image. left_out: rows that are not ok or
    empty."""

    name: str
    place: Path
    texts: dict[str, str]
    samples: dict[str, Sample]
    left_out: int


@dataclass(frozen=True)
class Line:
    """One number of a metric, by captioner. better: 1 where more is better, -1 where less is, 0 where neither is."""

    metric: str
    name: str
    better: int
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name if self.metric.lower() in self.name.lower() else f"{self.metric}: {self.name}"


@dataclass(frozen=True)
class Statement:
    """A statement of a caption. verdict: the judge's: yes, no or unsure."""

    text: str
    verdict: str


@dataclass
class Arena:
    """Everything that the page shows.

    images: (name, share of conflicting metrics), in the order in which they are shown.
    lines: the numbers of all metrics.
    accounts: (captioner, metric, counts behind it: how many captions were judged, refused, ...).
    failed: (captioner, metric, why it has no number).
    statements: by captioner and image.
    each: values of single captions, by (metric, number), captioner and image.
    """

    captioners: list[Captioner]
    images: list[tuple[str, float]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    accounts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    rates: win_rates.WinRates | None = None
    agreement: metric_agreement.Agreement | None = None
    statements: dict[str, dict[str, list[Statement]]] = field(default_factory=dict)
    each: dict[tuple[str, str], dict[str, dict[str, float]]] = field(default_factory=dict)

    def value(self, line: Line, name: str, image: str) -> float | None:
        """The value of one caption; None where the metric has none of single captions."""
        return self.each.get((line.metric, line.name), {}).get(name, {}).get(image)

    def line(self, metric: str, name: str, better: int) -> Line:
        found = next((line for line in self.lines if (line.metric, line.name) == (metric, name)), None)
        if found is None:
            self.lines.append(found := Line(metric, name, better))
        return found


@dataclass(frozen=True)
class ArenaRequest:
    """What the page is to show.

    captioners: place of the captions, by captioner.
    parts: (captioner, arguments of the suite).
    battles: (one captioner, the other, run of the judge).
    statements: by captioner, the run whose statements were judged, where these are not the captions' sentences.
    verdicts: by captioner, the run of the judge.
    """

    captioners: dict[str, Path]
    parts: list[tuple[str, argparse.Namespace]]
    battles: list[tuple[str, str, Path]]
    statements: dict[str, Path]
    verdicts: dict[str, Path]


def made(asked: ArenaRequest) -> Arena:
    """Measure and compare everything. UserError where the captions themselves cannot be compared."""
    sets = {name: text_sets.read(p, text_sets.CAPTIONS, may_be_empty=True) for name, p in asked.captioners.items()}
    images = Images(sets)
    arena = Arena([_captioner(name, one, images) for name, one in sets.items()])
    for name, arguments in asked.parts:
        _measure(arena, name, arguments)
    _fight(arena, images, asked.battles)
    texts = {captioner.name: captioner.texts for captioner in arena.captioners}
    for name, run in asked.verdicts.items():
        try:
            arena.statements[name] = _statements(arena, images, name, texts[name], run, asked.statements.get(name))
        except UserError as error:
            arena.failed.append((name, "verdicts", str(error)))
    _compare(arena, images)
    return arena


def _captioner(name: str, found: TextSet, images: Images) -> Captioner:
    samples = {image: sample for sample in found.texts if (image := images.find(sample))}
    texts = {image: found.texts[sample][0] for image, sample in samples.items()}
    return Captioner(name, found.place, texts, samples, found.left_out)


def _measure(arena: Arena, name: str, arguments: argparse.Namespace) -> None:
    try:
        found = arguments.measure(arguments)
    except UserError as error:
        arena.failed.append((name, arguments.metric, str(error)))
        return
    for number, value in found["metrics"].items():
        line = arena.line(arguments.metric, number, suite.better(arguments.metric, number))
        if name in line.values:
            raise UserError(
                f"arena: {arguments.metric} of {name} says {number!r} twice. Name the runs of one of them otherwise: "
                "NAME=RUN."
            )
        line.values[name] = value
    arena.accounts.append((name, arguments.metric, found["account"]))


# --- battles ----------------------------------------------------------------------------------------


def _fight(arena: Arena, images: Images, asked: Sequence[tuple[str, str, Path]]) -> None:
    fought: list[win_rates.Battle] = []
    for one, other, run in asked:
        try:
            answers = judged.read(run, battles.FIELDS)
            sides = {name for row in answers.rows for name in row["order"] or []}
            ours = one if one in sides else "ours"
            counted = battles.compute(answers, ours)  # checks the sides, too
        except UserError as error:
            arena.failed.append((f"{one} and {other}", BATTLES, str(error)))
            continue
        account = answers.account | {"first_won": counted.first}
        arena.accounts.append((f"{one} and {other}", BATTLES, account))
        for row in answers.rows:
            image = images.find((row["shard"], without_dot_slash(row["key"])))
            if image is not None:
                fought.append(win_rates.Battle(image, one, other, battles.point(row, ours, answers)))
    if not fought:
        return
    arena.rates = win_rates.compute(fought)
    shares: dict[str, dict[Sample, list[float]]] = {}
    for battle in fought:
        for name, sign in ((battle.one, 1), (battle.other, -1)):
            won = (1 + sign * battle.point) / 2
            shares.setdefault(name, {}).setdefault(images.sample(battle.image), []).append(won)
    line = arena.line(BATTLES, "won", 1)
    for name, found in shares.items():
        line.values[name] = bootstrap_mean({sample: sum(won) / len(won) for sample, won in found.items()})


# --- statements -------------------------------------------------------------------------------------


def _statements(
    arena: Arena, images: Images, name: str, texts: Mapping[str, str], run: Path, told: Path | None
) -> dict[str, list[Statement]]:
    """Statements with verdicts, by image.

    Args:
        run: the judge's. told: the run whose statements it judged; None: it judged sentences, or whole captions.
    """
    answers = judged.read(run, ["verdict"])
    known = {(r["shard"], r["key"]): r["statement"] for r in judged.read(told, ["statement"]).rows} if told else None
    found: dict[str, list[Statement]] = {}
    for row in answers.rows:
        image = images.find((row["shard"], without_dot_slash(parent_of(row["key"]))))
        if image is None or image not in texts:
            continue
        text = _stated(row, texts[image]) if known is None else known.get((row["shard"], row["key"]))
        if text is None:
            raise UserError(
                f"arena: {run} has a verdict on {row['key']} of shard {row['shard']}, which is no statement of "
                f"{told or 'the captions of ' + name}. Name the run that its statements were taken from."
            )
        if row["verdict"] not in crosscheck.UNSUPPORTED:
            raise UserError(
                f"arena: {run} has the verdict {row['verdict']!r} on {row['key']}: expected one of "
                f"{', '.join(crosscheck.UNSUPPORTED)}."
            )
        found.setdefault(image, []).append(Statement(text, row["verdict"]))
    arena.accounts.append((name, "verdicts", answers.account))
    return found


def _stated(row: Mapping[str, Any], caption: str) -> str | None:
    if "#" not in row["key"]:
        return caption
    said, number = sentences(caption), number_of(row["key"])
    return said[number] if 0 <= number < len(said) else None


# --- metrics against each other ---------------------------------------------------------------------


def _of_images(arena: Arena, images: Images) -> Iterator[tuple[Line, np.ndarray]]:
    """(line, values [captioners, images] of single captions, where more is better), for the lines that have them."""
    place = {name: at for at, name in enumerate(images.names)}
    for line in arena.lines:
        values = np.full((len(arena.captioners), len(place)), np.nan)
        for at, captioner in enumerate(arena.captioners):
            mean = line.values.get(captioner.name)
            each = mean.each if isinstance(mean, Mean) else {}
            said = {images.find(s if isinstance(s, tuple) else ("", s)): value for s, value in each.items()}
            known = {image: value for image, value in said.items() if image is not None}
            arena.each.setdefault((line.metric, line.name), {})[captioner.name] = known
            for image, value in known.items():
                values[at, place[image]] = value * (line.better or 1)
        if not np.isnan(values).all():
            yield line, values


def _compare(arena: Arena, images: Images) -> None:
    found = list(_of_images(arena, images))
    names = [captioner.name for captioner in arena.captioners]
    shape = (0, len(names), len(images.names))

    def values(lines: Sequence[tuple[Line, np.ndarray]]) -> metric_agreement.Values:
        stacked = np.stack([one for _, one in lines]) if lines else np.zeros(shape)
        return metric_agreement.Values([line.label for line, _ in lines], names, images.names, stacked)

    if len(found) > 1:
        arena.agreement = metric_agreement.compute(values(found))
    texts = {image: [c.texts[image] for c in arena.captioners if image in c.texts] for image in images.names}
    judging = [(line, one) for line, one in found if line.better]
    arena.images = metric_agreement.by_disagreement(values(judging), texts)
