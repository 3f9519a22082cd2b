"""CAPTURE (arXiv 2405.19092): F1 of the scene graphs of a caption and of a reference.

Objects, attributes and relations are matched where they are equal, then by synonyms, then by similarity. The score is
(5 F1 of objects + 5 F1 of attributes + 2 F1 of relations) / 12. The published script needs a GPU, and counts a kind
that neither text has as 0; here its weight goes to the others, so that a text scores 1 against itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any

import numpy as np

from hpc.base.errors import UserError
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judged import Judged, name_of
from recap.evaluate.text_sets import Sample, join_by_sample
from recap.evaluate.wordnet import WordNet

FIELDS = ["objects", "attributes", "relations"]
_WEIGHTS = (5, 5, 2)
Element = tuple[str, ...]
Similar = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Cosines of two lists of phrases, [N, M]."""


@dataclass(frozen=True)
class Graph:
    """A scene graph. objects: (object,). attributes: (object, attribute). relations: (subject, relation, object).
    odd: how many entries could not be parsed, and are left out.
    """

    objects: tuple[Element, ...]
    attributes: tuple[Element, ...]
    relations: tuple[Element, ...]
    odd: int = 0


@dataclass(frozen=True)
class GraphScore:
    """Scores of two graphs, from 0 to 1. A kind of elements that neither graph has is None."""

    score: float
    objects: float | None
    attributes: float | None
    relations: float | None


class Matcher:
    """Scores graphs against each other.

    Args:
        wordnet: gives base forms and synonyms. Without it, two words are synonyms where one is a part of the other.
        similar: matches what is left by similarity. Without it, what is left does not match.
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

    def score(self, caption: Graph, reference: Graph) -> GraphScore:
        parts = [
            self._f1(caption.objects, reference.objects),
            self._f1(caption.attributes, reference.attributes),
            self._f1(caption.relations, reference.relations),
        ]
        known = [(weight, part) for weight, part in zip(_WEIGHTS, parts, strict=True) if part is not None]
        total = sum(weight for weight, _ in known)
        return GraphScore(sum(weight * part for weight, part in known) / total if total else 0.0, *parts)

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
    """(the parts of entries written "a | b", how many entries do not have `parts` of them)."""
    found = [[part.strip().lower() for part in entry.split("|")] for entry in entries]
    good = [one for one in found if len(one) == parts and all(one)]
    return good, len(found) - len(good)


@dataclass(frozen=True)
class Capture:
    """Means over images, times 100.

    objects, attributes, relations: over the images whose texts have such elements; None where no text has.
    unknown: captions without a graph, which are left out.
    missing: images without a caption, which count 0, as empty captions do.
    odd: entries of graphs that could not be parsed.
    """

    score: Mean
    objects: Mean | None
    attributes: Mean | None
    relations: Mean | None
    unknown: int
    missing: int
    odd: int


def compute(captions: Judged, references: Sequence[Judged], matcher: Matcher) -> Capture:
    """CAPTURE over all images that have a reference's graph. Several references of an image are averaged.

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
        mine, theirs = join_by_sample(captions.as_text_set(), run.as_text_set(found))
        back = {name_of(sample): graph for sample, graph in found.items()}
        for place, listed in theirs.items():
            key = name_of(place)
            places[key] = place
            wanted.setdefault(key, []).extend(back[name] for name in listed)
            names |= {key: mine[place]} if place in mine else {}
    samples = {name_of(sample): sample for sample in captions.samples()}
    rows: dict[Sample, list[GraphScore]] = {}
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
    objects, attributes, relations = (_mean(rows, kind) for kind in FIELDS)
    return Capture(score, objects, attributes, relations, unknown, missing, sum(graph.odd for graph in every))


def _mean(rows: Mapping[Sample, Sequence[GraphScore]], kind: str) -> Mean | None:
    known = {s: [part for one in scores if (part := getattr(one, kind)) is not None] for s, scores in rows.items()}
    means = {sample: 100 * sum(parts) / len(parts) for sample, parts in known.items() if parts}
    return bootstrap_mean(means) if means else None
