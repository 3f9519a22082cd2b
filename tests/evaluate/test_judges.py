"""Metrics of judges' answers: cases by hand, and the shipped pipelines with a judge that knows the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from hpc.base.errors import Exit, UserError
from recap.evaluate import claims, crosscheck, dcscore, hallucinated, rating, vdcscore
from recap.evaluate.dcscore import Fact
from recap.evaluate.judged import Judged
from recap.evaluate.text_sets import TextSet
from recap.worlds import shapes
from recap.worlds.oracle import Truths, serving
from recap.worlds.shape_claims import facts
from tests.support.jobs import command

SAMPLES = 12


def judged(*rows: dict[str, Any], **lost: int) -> Judged:
    return Judged(Path("runs/x"), [{"shard": "0", **row} for row in rows], len(rows), **lost)  # type: ignore[arg-type]


def verdicts(**said: str) -> Judged:
    """One letter a claim: y, n or u."""
    names = {"y": "yes", "n": "no", "u": "unsure"}
    return judged(
        *({"key": f"{key}#{at}", "verdict": names[one]} for key, word in said.items() for at, one in enumerate(word))
    )


# --- DCScore ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "references", "precision", "recall"),
    [
        ([Fact(True, 1), Fact(True, 2)], 2, 1.0, 1.0),
        ([Fact(True, 1), Fact(True, 2), Fact(True, 3), Fact(False)], 3, 3 / 4, 1.0),  # one false of N: 1/N less
        ([Fact(True, 1), Fact(True, 1)], 2, 1.0, 1 / 2),  # two share what they both match
        ([Fact(True, 1), Fact(False, 1)], 2, 1 / 2, 1 / 4),  # so do a right and a wrong one
        ([Fact(True), Fact(True, 1)], 3, 1.0, 2 / 4),  # right, and not in the reference: counted on both sides
        ([Fact(False), Fact(False)], 3, 0.0, 0.0),
        ([], 3, 0.0, 0.0),
    ],
)
def test_facts_by_hand(listed: list[Fact], references: int, precision: float, recall: float) -> None:
    found = dcscore.scores(listed, references)
    assert (found.precision, found.recall) == pytest.approx((precision, recall))
    assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall) if precision else 0.0)


def references(**said: int) -> TextSet:
    return TextSet(Path("runs/r"), {("0", key): [f"fact {n}" for n in range(count)] for key, count in said.items()})


def test_dcscore_of_captions() -> None:
    own = judged(
        {"key": "a", "facts": ["f0", "f1"], "describes": ["yes", "no"]},
        {"key": "b", "facts": ["f0", "f1"], "describes": ["yes", "yes"]},
    )
    own.empties, own.lost = {("0", "c")}, {("0", "d")}
    verified = judged(
        {"key": "a#0", "verdict": "yes", "alternatives": [{"verdict": "no"}]},
        {"key": "a#1", "verdict": "yes", "alternatives": [{"verdict": "yes"}]},
        {"key": "b#0", "verdict": "yes", "alternatives": [{"verdict": None}]},  # its second answer did not parse
    )
    matched = judged(*({"key": key, "match": number} for key, number in (("a#0", 1), ("a#1", 9), ("b#0", 1))))
    found = dcscore.compute(own, verified, matched, references(a=1, b=1, c=1, d=1, e=1))
    # a: in the first trial P = 1, R = (1 + 1) / (1 + 1); in the second P = 1/2, R = 1/2. The fact that describes: 1, 0.
    # b: one fact has answers: all are 1; its second trial has no fact. c is empty, e is missing: 0. d is not known.
    a, b = ((1 + 1) / 2 + (0.5 + 0) / 2) / 2, 0.5
    assert found.score.value == pytest.approx(100 * (a + b) / 4) and found.score.n == 4
    assert (found.trials, found.unknown, found.lost, found.missing) == (2, 1, 1, 1)
    with pytest.raises(UserError, match="no fact of"):
        dcscore.compute(own, judged({"key": "a#5", "verdict": "yes"}), matched, references(a=1))


# --- the others -------------------------------------------------------------------------------------


def test_claims_by_hand() -> None:
    own = judged({"key": "a", "facts": ["1", "2", "3"]}, {"key": "b", "facts": ["1"]}, empty=1)
    own.empties = {("0", "c")}
    found = claims.compute(own, verdicts(a="ynu", b="n"))
    assert (found.claimed.value, found.supported.value, found.claimed.n) == (4 / 3, 1 / 3, 3)
    assert found.risk is not None and (found.risk.value, found.unsure) == (2 / 4, 1)
    assert claims.compute(own, judged()).risk is None
    with pytest.raises(UserError, match="no claim of"):
        claims.compute(own, verdicts(c="y"))
    openers = ["The image shows a cat.", "In this picture, a dog", "Here is a bird", "A cat", "Imagery", "Théâtre"]
    assert claims.opener_rate({("0", text): text for text in openers}).value == 1 / 2


def test_hallucinated_objects_by_hand() -> None:
    found = hallucinated.compute(verdicts(a="yyn", b="un"))
    assert found.rate is not None and found.rate.value == 2 / 4
    assert (found.yes, found.no, found.unsure, found.captions) == (2, 2, 1, 2)
    assert hallucinated.compute(verdicts(a="uu")).rate is None  # undefined, and no crash
    none_wrong = hallucinated.compute(verdicts(a="yy")).rate
    assert none_wrong is not None and none_wrong.value == 0.0


def test_questions_by_hand() -> None:
    rows = [("a#0", "yes", 5), ("a#1", "no", 1), ("b#0", "no", 0), ("b#1", "no", 0)]
    graded = judged(*({"key": key, "verdict": verdict, "score": score} for key, verdict, score in rows))
    answered = judged()
    answered.empties = {("0", "c#0"), ("0", "c#1")}
    found = vdcscore.compute(answered, graded)
    assert (found.accuracy.value, found.score.value) == pytest.approx((50 / 3, 3 / 3))  # b and c count 0
    assert (found.accuracy.n, found.questions, found.empty) == (3, 6, 2)
    with pytest.raises(UserError, match="0 to 5"):
        vdcscore.compute(answered, judged({"key": "a#0", "verdict": "yes", "score": 9}))


def test_crosscheck_by_hand() -> None:
    found = crosscheck.compute({"one": verdicts(a="yn", b="u"), "two": verdicts(a="nn")})
    # a: (0 + 1) / 2 and (1 + 1) / 2 by the others: 3/4. b: 1/2.
    assert found.score.value == pytest.approx((3 / 4 + 1 / 2) / 2) and found.sentences == 3
    assert (found.each["one"].value, found.each["two"].value) == (1 / 2, 1.0)


def test_ratings_by_hand() -> None:
    found = rating.compute({("0", str(n)): given for n, given in enumerate([5, 5, 2, 4])})
    assert (found.mean.value, found.mean.n, found.counts) == (4.0, 4, {1: 0, 2: 1, 3: 0, 4: 1, 5: 2})


# --- the shipped pipelines --------------------------------------------------------------------------


def write(folder: Path, texts: dict[str, Any]) -> None:
    folder.mkdir()
    pq.write_table(pa.table({"key": list(texts), "caption": list(texts.values())}), folder / "0.parquet")


def key(number: int) -> str:
    return f"{number:08d}"


def true(number: int) -> str:
    return shapes.caption(shapes.sample(3, number, side=48).scene)


def misplaced(number: int) -> str:
    """The caption with one fact wrong: where its first group is."""
    group = shapes.sample(3, number, side=48).scene.groups[0]
    other = "top left" if group.place != "top left" else "bottom right"
    return true(number).replace(f"in the {group.place}.", f"in the {other}.", 1)


def recoloured(number: int) -> str:
    """The caption with the colour of its first group wrong, and that of no other group."""
    scene = shapes.sample(3, number, side=48).scene
    group = scene.groups[0]
    other = next(c for c in ("red", "blue", "green", "pink") if c not in {g.colour for g in scene.groups})
    return true(number).replace(group.colour, other, 1)


ODD = range(1, SAMPLES, 2)
EMPTY = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("judges")
    (folder / "in").mkdir()
    shapes.write_shard(folder / "in" / "0.tar", seed=3, first=0, samples=SAMPLES, side=48)
    for name, wrong in (("mine", misplaced), ("recoloured", recoloured)):
        write(folder / name, {key(n): wrong(n) if n in ODD else true(n) for n in range(SAMPLES)} | {key(EMPTY): ""})
    write(folder / "true", {key(n): true(n) for n in range(SAMPLES)})
    with serving(Truths([folder / "in" / "0.tar"])) as (url, _):
        yield folder, url


def launched(world: tuple[Path, str], name: str, **columns: str) -> dict[str, Any]:
    """What a pipeline of configs/systems reports.

    Args:
        columns: a folder of the world, by stage and column ("facts__caption"); "" for a stage that reads images alone.
    """
    folder, url = world
    file = Path("configs/systems") / f"{name}.yaml"
    stages = yaml.safe_load(file.read_text())["stages"]
    given = [f"runs={folder}", f"name={name}"]
    for stage in stages:
        given += [f"{stage}.map.min_free_gb=0", f"{stage}.map.max_failed=1"] if stage != "report" else []
        given += [f"{stage}.writer.endpoint={url}"] if stage not in ("report", "each") else []
    for place, column in columns.items():
        stage, _, field = place.partition("__")
        given.append(f"{stage}.data.shards=[{folder}/in]")
        where = f"{stage}.data.columns.{field}"
        given += [f"{where}.run=null", f"{where}.folder={folder / column}", f"{where}.field=caption"] if column else []
    done = command("hpc.launch", str(file), *dict.fromkeys(given), timeout=500)
    assert done.returncode == Exit.COMPLETE, done.stdout[-3000:] + done.stderr[-3000:]
    report = folder / name / "report" / f"{name.partition('_')[0]}.json"
    return json.loads(report.read_text())


def told(number: int) -> int:
    return len(facts(true(number)))


@pytest.mark.slow  # four jobs, each with a start of its own
def test_claims_of_captions_with_planted_errors(world: tuple[Path, str]) -> None:
    found = launched(world, "claims", facts__caption="mine", verified="")
    total = sum(told(n) for n in range(SAMPLES) if n != EMPTY)
    metrics = found["metrics"]
    assert metrics["claimed"]["value"] == pytest.approx(total / SAMPLES) and found["account"]["facts"]["empty"] == 1
    assert metrics["supported judge"]["value"] == pytest.approx((total - len(ODD)) / SAMPLES)
    assert metrics["risk judge"]["value"] == pytest.approx(len(ODD) / total)


@pytest.mark.slow
def test_one_planted_fact_costs_dcscore_its_share(world: tuple[Path, str]) -> None:
    columns = {"facts__caption": "mine", "reference__caption": "true", "verified__known": "true"}
    found = launched(world, "dcscore", **columns)
    shares = [0.0 if n == EMPTY else (told(n) - 1) / told(n) if n in ODD else 1.0 for n in range(SAMPLES)]
    for name in ("DCScore", "precision", "recall", "f1"):
        assert found["metrics"][name]["value"] == pytest.approx(100 * sum(shares) / SAMPLES), name
    assert found["account"]["captions"] == {"trials": 9, "unknown": 0, "bare": 0, "lost": 0, "missing": 0}


@pytest.mark.slow
def test_a_planted_rate_of_objects_is_recovered(world: tuple[Path, str]) -> None:
    found = launched(world, "openchair", objects__caption="recoloured", contains__reference="true")
    total = sum(len(shapes.sample(3, n, side=48).scene.groups) for n in range(SAMPLES) if n != EMPTY)
    assert found["metrics"]["captions"]["value"] == pytest.approx(len(ODD) / total)
    assert found["account"]["captions"]["no"] == len(ODD) and found["account"]["captions"]["yes"] == total - len(ODD)


@pytest.mark.slow
def test_questions_that_a_wrong_caption_answers(world: tuple[Path, str]) -> None:
    found = launched(world, "vdcscore", questions__reference="true", answered__caption="mine")
    # A question for each group's number, size and place, and one for the background.
    asked = [3 * len(shapes.sample(3, n, side=48).scene.groups) + 1 for n in range(SAMPLES)]
    shares = [0.0 if n == EMPTY else (asked[n] - 1) / asked[n] if n in ODD else 1.0 for n in range(SAMPLES)]
    assert found["metrics"]["captions accuracy"]["value"] == pytest.approx(100 * sum(shares) / SAMPLES)
    assert found["metrics"]["captions score"]["value"] == pytest.approx(5 * sum(shares) / SAMPLES)
    assert found["account"]["captions answered"]["empty"] == asked[EMPTY]


@pytest.mark.slow
def test_a_wrong_colour_is_an_attribute_less(world: tuple[Path, str]) -> None:
    found = launched(world, "capture", graph__caption="recoloured", reference__caption="true")["metrics"]
    zero = 100 * (SAMPLES - 1) / SAMPLES  # but for the empty caption
    assert found["objects"]["value"] == pytest.approx(zero) == pytest.approx(found["relations"]["value"])
    assert 50 < found["attributes"]["value"] < zero


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crosscheck", "crosscheck_implicit"])
def test_sentences_that_others_do_not_confirm(world: tuple[Path, str], kind: str) -> None:
    others = {"one__other": "true", "two__other": "true"} if kind == "crosscheck" else {"one": "", "two": ""}
    found = launched(world, kind, each__caption="mine", **others)
    sentences = {n: len(shapes.sample(3, n, side=48).scene.groups) + 1 for n in range(SAMPLES) if n != EMPTY}
    wrong = [1 / count if n in ODD else 0.0 for n, count in sentences.items()]
    assert found["metrics"]["CrossCheck"]["value"] == pytest.approx(sum(wrong) / len(wrong))
    assert found["account"]["sentences"] == sum(sentences.values())
