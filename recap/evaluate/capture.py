"""CAPTURE: how much of a reference's scene graph a caption's has, and the other way round (arXiv 2405.19092).

Objects, attributes and relations are matched when they are equal, then by synonyms, and what is left by how similar it
is; (5 F1 of objects + 5 F1 of attributes + 2 F1 of relations) / 12. The published script needs a GPU, and counts a kind
that neither text has as 0: here its weight goes to the others, so that a text equals itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judged import Judged, name_of
from recap.evaluate.text_sets import Sample, joined
from recap.evaluate.wordnet import WordNet

FIELDS = ["objects", "attributes", "relations"]
_WEIGHTS = (5, 5, 2)
Element = tuple[str, ...]
Similar = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Cosines of two lists of phrases, [N, M]."""


@dataclass(frozen=True)
class Graph:
    """objects: words. attributes: words, each once an object that has it. relations: subject, relation, object. odd:
    entries that are none of these, left out.
    """

    objects: tuple[Element, ...]
    attributes: tuple[Element, ...]
    relations: tuple[Element, ...]
    odd: int = 0


@dataclass(frozen=True)
class Scored:
    """From 0 to 1; a kind of elements that neither graph has is None."""

    score: float
    objects: float | None
    attributes: float | None
    relations: float | None


class Matcher:
    """Scores graphs against each other.

    Args:
        wordnet: basic forms and synonyms; without it a word's synonyms are those that it is a part of, or that are a
            part of it.
        similar: of what is left; without it what is left does not match.
    """

    def __init__(self, wordnet: WordNet | None = None, similar: Similar | None = None) -> None:
        self._wordnet, self._similar = wordnet, similar

    def graph(self, row: Mapping[str, Any]) -> Graph:
        """The graph of a row of configs/generate/graph.yaml."""
        objects = [self._basic(entry, "noun") for entry in row["objects"] if entry.strip()]
        pairs, odd = _split(row["attributes"], 2)
        triples, more = _split(row["relations"], 3)
        owned = dict.fromkeys((self._basic(one, "noun"), self._basic(what, "adj")) for one, what in pairs)
        related = ((self._basic(one, "noun"), how, self._basic(other, "noun")) for one, how, other in triples)
        return Graph(
            tuple((name,) for name in dict.fromkeys(objects)),
            tuple((what,) for _, what in owned if " of" not in what),
            tuple(dict.fromkeys(related)),
            odd + more,
        )

    def score(self, caption: Graph, reference: Graph) -> Scored:
        parts = [
            self._f1(caption.objects, reference.objects),
            self._f1(caption.attributes, reference.attributes),
            self._f1(caption.relations, reference.relations),
        ]
        known = [(weight, part) for weight, part in zip(_WEIGHTS, parts, strict=True) if part is not None]
        total = sum(weight for weight, _ in known)
        return Scored(sum(weight * part for weight, part in known) / total if total else 0.0, *parts)

    def _f1(self, ours: Sequence[Element], theirs: Sequence[Element]) -> float | None:
        if not ours or not theirs:
            return None if not ours and not theirs else 0.0
        matched, left, missing = 0, list(ours), list(theirs)
        for same in (eq, self._synonyms):
            for element in list(left):
                found = next((other for other in missing if same(element, other)), None)
                if found is not None:
                    matched += 1
                    left.remove(element)
                    missing.remove(found)
        precise = recalled = float(matched)
        if self._similar is not None and left and missing:
            cosines = self._similar([" ".join(element) for element in left], [" ".join(other) for other in missing])
            precise += float(cosines.max(axis=1).sum())
            recalled += float(cosines.max(axis=0).sum())
        precision, recall = precise / len(ours), recalled / len(theirs)
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0

    def _synonyms(self, one: Element, other: Element) -> bool:
        return all(self._same(a, b) for a, b in zip(one, other, strict=True))

    def _same(self, one: str, other: str) -> bool:
        if one in other or other in one:
            return True
        return self._wordnet is not None and not self._wordnet.synonyms(one).isdisjoint(self._wordnet.synonyms(other))

    def _basic(self, word: str, part: str) -> str:
        word = " ".join(word.lower().split())
        return self._wordnet.basic(word, part) if self._wordnet else word


def _split(entries: Sequence[str], parts: int) -> tuple[list[list[str]], int]:
    """The parts of entries written "a | b", and how many are not."""
    found = [[part.strip().lower() for part in entry.split("|")] for entry in entries]
    good = [one for one in found if len(one) == parts and all(one)]
    return good, len(found) - len(good)


@dataclass(frozen=True)
class Capture:
    """Means over images, times 100; of a kind of elements over the images whose texts have some of it, None where none
    has. unknown: captions without a graph, left out. missing: images without a caption, which count 0, as empty
    captions do. odd: entries of graphs that could not be read.
    """

    score: Mean
    objects: Mean | None
    attributes: Mean | None
    relations: Mean | None
    unknown: int
    missing: int
    odd: int


def of(captions: Judged, references: Sequence[Judged], matcher: Matcher) -> Capture:
    """Over all images that have a reference's graph; with several references an image, the mean over them.

    Raises:
        UserError: no caption has a graph.
    """
    own = {sample: matcher.graph(row) for sample, row in captions.of_rows().items()}
    graphs = [{sample: matcher.graph(row) for sample, row in run.of_rows().items()} for run in references]
    every = [*own.values(), *(graph for run in graphs for graph in run.values())]
    wanted: dict[str, list[Graph]] = {}
    names: dict[str, str] = {}
    places: dict[str, Sample] = {}
    for run, found in zip(references, graphs, strict=True):
        mine, theirs = joined(captions.named(), run.named(found))
        back = {name_of(sample): graph for sample, graph in found.items()}
        for place, listed in theirs.items():
            key = name_of(place)
            places[key] = place
            wanted.setdefault(key, []).extend(back[name] for name in listed)
            names |= {key: mine[place]} if place in mine else {}
    samples = {name_of(sample): sample for sample in captions.samples()}
    rows: dict[Sample, list[Scored]] = {}
    unknown = missing = 0
    for key, known in wanted.items():
        sample = samples.get(names.get(key, ""))
        if sample is None or sample in captions.empties:
            missing += sample is None
            rows[sample or places[key]] = [matcher.score(Graph((), (), ()), graph) for graph in known]
        elif sample in own:
            rows[sample] = [matcher.score(own[sample], graph) for graph in known]
        else:
            unknown += 1
    if not rows:
        raise UserError(f"evaluate: no caption of {captions.run} has a graph.")
    score = bootstrap_mean(
        {sample: 100 * sum(one.score for one in scores) / len(scores) for sample, scores in rows.items()}
    )
    objects, attributes, relations = (_mean(rows.values(), kind) for kind in FIELDS)
    return Capture(score, objects, attributes, relations, unknown, missing, sum(graph.odd for graph in every))


def _mean(rows: Iterable[Sequence[Scored]], kind: str) -> Mean | None:
    known = [[part for one in scores if (part := getattr(one, kind)) is not None] for scores in rows]
    means = [100 * sum(parts) / len(parts) for parts in known if parts]
    return bootstrap_mean(means) if means else None
