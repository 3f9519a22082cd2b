"""Which metric of captions notices which planted error: the study of planted_errors.yaml.

python -m benchmarks.studies.planted_errors OUT.md [--study FILE.yaml]
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.timing import say
from hpc.base.errors import Parser
from recap.evaluate import (
    battles,
    capture,
    claims,
    classics,
    crosscheck,
    dcscore,
    diversity,
    hallucinated,
    rating,
    vdcscore,
)
from recap.evaluate.intervals import Mean
from recap.evaluate.judged import Judged
from recap.evaluate.text_sets import TextSet
from recap.generate.rating import parse_rating
from recap.randomness import draw
from recap.worlds import shapes
from recap.worlds.answers import OF_TEXTS, TASKS, mistaken
from recap.worlds.shape_errors import PLANTED
from recap.worlds.truths import Truth, truth_of_shapes

_T = 2.776  # 97.5 % of Student's t with 4 degrees of freedom: five seeds
FACTUAL = ("false colour", "wrong count", "wrong place", "missing object", "extra object")


@dataclass(frozen=True)
class World:
    """Scenes of one seed, what is true of them, and their captions without an error."""

    scenes: dict[str, Any]
    truths: dict[str, Truth]
    right: dict[str, str]


def world(seed: int, scenes: int) -> World:
    made = {f"{n:05d}": shapes.sample(1000 + seed, n, side=16) for n in range(scenes)}
    truths = {key: _truth(key, sample) for key, sample in made.items()}
    found = {key: sample.scene for key, sample in made.items()}
    return World(found, truths, {key: shapes.caption(scene) for key, scene in found.items()})


def _truth(key: str, sample: shapes.Sample) -> Truth:
    found = truth_of_shapes(key, json.loads(shapes.files(sample)["json"]))
    return replace(found, judge=cache(found.judge))  # equal statements are judged often


def with_errors(found: World, kinds: tuple[str, ...], share: float, seed: int) -> dict[str, str]:
    """Captions of which a share carries an error of one of the kinds. A larger share has a smaller one's errors too."""
    texts = dict(found.right)
    order = sorted(texts, key=lambda key: draw(seed, "who", *kinds, key))
    for key in order[: round(share * len(order))]:
        rng = random.Random(f"{seed}/{key}/{kinds}")
        texts[key] = PLANTED[rng.choice(kinds)](found.scenes[key], rng)
    return texts


class Judge:
    """The oracle's answers, some of them wrong."""

    def __init__(self, found: World, wrong: float, seed: int) -> None:
        self._world, self._wrong, self._seed = found, wrong, seed

    def ask(self, task: str, key: str, text: str) -> str:
        said = OF_TEXTS[task](text) if task in OF_TEXTS else TASKS[task](self._world.truths[key], text)
        if draw(self._seed, "wrong", task, key, text) / 2**64 < self._wrong:
            return mistaken(task, said) or said
        return said


def as_judged(rows: Iterator[dict[str, Any]]) -> Judged:
    found = [{"shard": "0", **row} for row in rows]
    return Judged(Path("planted"), found, len(found))


def bracketed(lines: str) -> list[list[str]]:
    return [line.strip("[]").split("][") for line in lines.splitlines() if line.startswith("[")]


def judged_metrics(
    found: World, texts: dict[str, str], others: list[dict[str, str]], judge: Judge
) -> dict[str, Mean | None]:
    """Every metric that asks a judge, of one captioner; None where it is undefined.

    others: captions of other captioners, for CrossCheck.
    """
    listed = {key: bracketed(judge.ask("facts", key, f"Caption: {text}")) for key, text in texts.items()}
    wanted = {
        key: [fact for fact, _ in bracketed(OF_TEXTS["facts"](f"Caption: {t}"))] for key, t in found.right.items()
    }
    own = as_judged({"key": k, "facts": [f for f, _ in v], "describes": [d for _, d in v]} for k, v in listed.items())
    each = [(key, f"{key}#{n}", fact) for key, facts in listed.items() for n, (fact, _) in enumerate(facts)]
    verified = as_judged(
        {"key": name, "verdict": judge.ask("verdict", key, f"Statement: {f}")} for key, name, f in each
    )
    numbers = {key: "\n".join(f"{n}. {fact}" for n, fact in enumerate(facts, 1)) for key, facts in wanted.items()}
    asks = ((key, name, f"{numbers[key]}\nFact: {fact}") for key, name, fact in each)
    matched = as_judged({"key": name, "match": int(judge.ask("match", key, text))} for key, name, text in asks)
    facts = dcscore.compute(
        own, verified, matched, TextSet(Path("reference"), {("0", k): v for k, v in wanted.items()})
    )
    claimed = claims.compute(own, verified)
    objects = [(key, thing) for key, text in texts.items() for thing in _things(judge, key, text)]
    held = hallucinated.compute(
        as_judged(
            {"key": f"{key}#{n}", "verdict": judge.ask("contains", key, _contains(found.right[key], thing))}
            for n, (key, thing) in enumerate(objects)
        )
    )
    graphs = {key: judge.ask("graph", key, f"Caption: {text}") for key, text in texts.items()}
    references = {key: OF_TEXTS["graph"](f"Caption: {text}") for key, text in found.right.items()}
    rated = rating.compute({("0", key): _rated(judge.ask("rating", key, text)) for key, text in texts.items()})
    scenes = capture.compute(_graphs(graphs), [_graphs(references)], capture.Matcher())
    return {
        "supported": claimed.supported, "risk": claimed.risk,
        "DCScore": facts.score, "precision": facts.precision, "recall": facts.recall,
        "OpenCHAIR": held.rate, "CAPTURE": scenes.score, "rating": rated.mean,
        "CapArena": battles.compute(_battles(found, texts, judge)).score,
        "VDCscore": _questions(found, texts, judge), "CrossCheck": _crosschecked(texts, others, judge),
    }  # fmt: skip


def _graphs(said: dict[str, str]) -> Judged:
    return as_judged({"key": key, **json.loads(answer)} for key, answer in said.items())


def _things(judge: Judge, key: str, text: str) -> list[str]:
    return [line for line in judge.ask("objects", key, f"Caption: {text}").splitlines() if line]


def _contains(reference: str, thing: str) -> str:
    return (
        f"Here are a few descriptions of an image: {reference}.\n"
        f"Does the image contain the following object: {thing}?\nAnswer yes/no/unsure.\n The answer is:"
    )


def _rated(answer: str) -> int:
    found = parse_rating(answer)
    assert found is not None
    return found


def _battles(found: World, texts: dict[str, str], judge: Judge) -> Judged:
    """Against the captions without an error; which stands first is drawn by key."""

    def rows() -> Iterator[dict[str, Any]]:
        for key, text in texts.items():
            sides = {"ours": text, "theirs": found.right[key]}
            order = ["ours", "theirs"] if draw(0, "first", key) % 2 else ["theirs", "ours"]
            said = f"First caption: {sides[order[0]]}\nSecond caption: {sides[order[1]]}"
            yield {"key": key, "order": order, "verdict": judge.ask("compare", key, said).split()[-1]}

    return as_judged(rows())


def _questions(found: World, texts: dict[str, str], judge: Judge) -> Mean:
    def rows() -> Iterator[dict[str, Any]]:
        for key, reference in found.right.items():
            for n, (question, right) in enumerate(bracketed(OF_TEXTS["questions"](f"Reference: {reference}"))):
                answer = judge.ask("answer", key, f"Caption: {texts[key]}\nQuestion: {question}")
                asks = f"Question: {question}\nRight answer: {right}\nAnswer: {answer}"
                yield {"key": f"{key}#{n}", **json.loads(judge.ask("grade", key, asks))}

    return vdcscore.compute(Judged(Path("answered")), as_judged(rows())).accuracy


def _crosschecked(texts: dict[str, str], others: list[dict[str, str]], judge: Judge) -> Mean:
    def rows(other: dict[str, str]) -> Iterator[dict[str, Any]]:
        for key, text in texts.items():
            for n, sentence in enumerate(part for part in text.split(". ") if part):
                verdict = judge.ask("supports", key, f"Text: {other[key]}\nStatement: {sentence}")
                yield {"key": f"{key}#{n}", "verdict": verdict}

    return crosscheck.compute({str(n): as_judged(rows(other)) for n, other in enumerate(others)}).score


def word_metrics(found: World, texts: dict[str, str]) -> dict[str, Mean | float]:
    """Every metric of one captioner that asks no judge."""
    near = classics.scores(texts, {key: [text] for key, text in found.right.items()}, "plain").scores
    own = diversity.compute(texts)
    assert own.self_bleu is not None
    return {
        **{name: near[name] for name in ("BLEU-4", "ROUGE-L", "CIDEr-D")},
        "words": own.words, "vocabulary": float(own.vocabulary), "distinct-2": own.distinct[1],
        "self-BLEU": own.self_bleu,
    }  # fmt: skip


def plain(found: Mapping[str, Mean | float | None]) -> dict[str, float]:
    """The numbers alone; NaN where a metric is undefined."""
    return {
        name: one.value if isinstance(one, Mean) else math.nan if one is None else one for name, one in found.items()
    }


def all_metrics(study: dict[str, Any], say: Callable[[str], object]) -> dict[tuple[int, str, float], dict[str, float]]:
    """Every metric by seed, kind of error and share of captions with one."""
    values: dict[tuple[int, str, float], dict[str, float]] = {}
    for seed in study["seeds"]:
        found = world(seed, study["scenes"])
        judge = Judge(found, study["wrong"], seed)
        others = [with_errors(found, FACTUAL, study["evidence"], 100 + 2 * seed + n) for n in range(2)]
        for kind in PLANTED:
            for share in study["shares"]:
                if not share and (known := values.get((seed, next(iter(PLANTED)), share))):
                    values[seed, kind, share] = known  # without an error all kinds are the same captioner
                    continue
                texts = with_errors(found, (kind,), share, seed)
                made = {**judged_metrics(found, texts, others, judge), **word_metrics(found, texts)}
                values[seed, kind, share] = plain(made)
        say(f"seed {seed} done")
    return values


def table(study: dict[str, Any], values: dict[tuple[int, str, float], dict[str, float]]) -> Iterator[str]:
    """Lines of a table: a row a metric, a column a kind of error. A cell is the mean difference and its interval, bold
    where the interval lies wholly on the worse side of 0, with * where in all seeds every larger share is worse."""
    yield "| metric | without an error | " + " | ".join(PLANTED) + " |"
    yield "|---|---|" + "---|" * len(PLANTED)
    seeds, shares = study["seeds"], study["shares"]
    for sign, names in ((-1, study["worse"]["lower"]), (1, study["worse"]["higher"])):
        for name in names:
            none = statistics.fmean(values[seed, next(iter(PLANTED)), 0.0][name] for seed in seeds)
            cells = [_cell([[values[s, kind, x][name] for x in shares] for s in seeds], sign) for kind in PLANTED]
            yield f"| {name} ({'lower' if sign < 0 else 'higher'} is worse) | {none:.3g} | " + " | ".join(cells) + " |"


def _cell(series: list[list[float]], sign: int) -> str:
    changes = [row[-1] - row[0] for row in series]
    mean, spread = statistics.fmean(changes), _T * statistics.stdev(changes) / len(changes) ** 0.5
    noticed = sign * mean - spread > 0
    ranked = all(sign * (after - before) > 0 for row in series for before, after in pairwise(row))
    text = f"{mean:+.3g} ± {spread:.2g}"
    return ("**" + text + "**" if noticed else text) + "*" * ranked


def agreement(study: dict[str, Any], values: dict[tuple[int, str, float], dict[str, float]]) -> Iterator[str]:
    """Spearman's rank correlation of metrics over captioners, worse counted as worse; mean and range over seeds."""
    signs = {name: 1 for name in study["worse"]["lower"]} | {name: -1 for name in study["worse"]["higher"]}
    names = [
        "DCScore",
        "rating",
        "CapArena",
        "risk",
        "OpenCHAIR",
        "VDCscore",
        "CrossCheck",
        "CAPTURE",
        "CIDEr-D",
        "BLEU-4",
    ]
    yield "| | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    for name in names:
        cells = []
        for other in names:
            found = []
            for seed in study["seeds"]:
                rows = [values[key] for key in values if key[0] == seed and (key[2] or key[1] == next(iter(PLANTED)))]
                found.append(
                    spearman([signs[name] * row[name] for row in rows], [signs[other] * r[other] for r in rows])
                )
            cells.append(f"{statistics.fmean(found):.2f} ({min(found):.2f} to {max(found):.2f})")
        yield f"| {name} | " + " | ".join(cells) + " |"


def spearman(one: list[float], other: list[float]) -> float:
    """Rank correlation; equal values share their mean rank. 0 where one of both is constant."""
    ranks = [_ranks(np.asarray(values)) for values in (one, other)]
    if not all(rank.std() for rank in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[place], dtype=np.float64)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", type=Path, default=Path(__file__).with_suffix(".yaml"))
    args = parser.parse_args()
    study = yaml.safe_load(args.study.read_text())
    begun = time.process_time()
    values = all_metrics(study, say)
    minutes = (time.process_time() - begun) / 60
    lines = [*table(study, values), "", *agreement(study, values), "", f"{minutes:.1f} CPU-minutes."]
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
