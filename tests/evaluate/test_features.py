"""Metrics of features: captions that find their images, and pictures that are drawn from captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit, UserError
from hpc.run.published import Published
from recap.dit import write_images
from recap.evaluate import features, finecapeval, image2text, judged, truematch
from recap.evaluate.features import Features, found_within
from recap.worlds import shapes
from tests.evaluate.render import SIDE, UNDRAWABLE, scene_of
from tests.score.conftest import write_clip
from tests.support.jobs import inline
from tests.support.published import published

SAMPLES = 12
LONGEST = 7  # words that this world's CLIP reads of a caption


Vectors = Mapping[str, Sequence[float]]


def hand(texts: Vectors, images: Vectors, **more: Any) -> Features:
    seen, said = (
        {("0", k): np.array(v, np.float32) / np.linalg.norm(v) for k, v in side.items()} for side in (images, texts)
    )
    return Features(Path("runs/f"), seen, said, **more)


FAR: Vectors = {"a": [1, 0, 0, 0], "b": [0, 1, 0, 0], "c": [0, 0, 1, 0], "d": [0, 0, 0, 1]}


# --- TrueMatch --------------------------------------------------------------------------------------


def test_captions_that_know_their_images_find_them_and_equal_ones_find_a_share() -> None:
    bags = [("a", "b", "c"), ("b", "c", "d"), ("a", "b", "c", "d")]
    true = truematch.compute(hand(FAR, FAR), bags)
    assert {size: mean.value for size, mean in true.recall.items()} == {3: 100.0, 4: 100.0}
    for said in ([0.9, 0.4, 0.1, 0.0], [1, 1, 1, 1]):  # nearest to one image; as near to each
        found = truematch.compute(hand(dict.fromkeys("abcd", said), FAR), bags)
        assert {size: mean.value for size, mean in found.recall.items()} == pytest.approx({3: 100 / 3, 4: 25.0})
        assert (found.recall[3].n, found.recall[4].n) == (2, 1)


def test_bags_by_hand() -> None:
    """a finds b, b itself, c has no caption; equal images share; an image that could not be read leaves its bag out."""
    known = hand({"a": [1, 2, 0, 0], "b": [0, 1, 0, 0]}, FAR, unread={("0", "e")})
    found = truematch.compute(known, [("a", "b", "c"), ("a", "e"), ("a", "nobody")])
    assert found.recall[3].value == pytest.approx(100 / 3) and (found.incomplete, found.missing) == (2, 1)
    assert found.recall[3].each == {("0", "a"): 0.0, ("0", "b"): 100.0, ("0", "c"): 0.0}  # of each caption
    often = truematch.compute(known, [("a", "b", "c"), ("a", "c", "d"), ("a", "b")]).recall
    assert often[3].each[("0", "a")] == 50.0 and often[3].n == 2  # first b is nearer to it, then it is the nearest
    assert often[2].each == {("0", "a"): 0.0, ("0", "b"): 100.0}
    twins = {"a": [1, 0], "b": [1, 0], "c": [0, 1]}
    assert truematch.compute(hand(twins, twins), [tuple("abc")]).recall[3].value == pytest.approx(
        100 * (0.5 + 0.5 + 1) / 3
    )
    images = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert [found_within(np.array([0.0, 1.0], np.float32), images, 0, most) for most in (1, 2, 3)] == [0.0, 0.5, 1.0]


def test_bags_name_images_as_their_makers_do(tmp_path: Path) -> None:
    file = tmp_path / "3.json"
    file.write_text(json.dumps([[391895, "COCO_val2014_000000000042.jpg", "1/größe"]]))
    known = hand({}, {"COCO_val2014_000000391895": [1, 0], "COCO_val2014_000000000042": [0, 1]})
    known.images[("1", "größe")] = np.array([0.6, 0.8], np.float32)
    assert truematch.compute(known, truematch.read_bags([file])).missing == 3
    known.images[("1", "COCO_val2014_000000391895")] = np.array([1.0, 0.0], np.float32)
    with pytest.raises(UserError, match="391895 of a bag is"):
        truematch.compute(known, truematch.read_bags([file]))
    with pytest.raises(UserError, match="is none of its keys"):
        truematch.compute(known, [("x", "y")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"), ('{"bags": []}', "expected a list of bags"), ("[]", "expected a list of bags"),
        ('[["a"]]', "bag 1 .a. is not two"), ('[["a", "b"], ["c", "c"]]', "bag 2"), ('[["a", null]]', "bag 1"),
        ('[["a", ["b"]]]', "bag 1"),
    ],
)  # fmt: skip
def test_files_that_are_no_bags_are_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bags.json").write_text(text)
    with pytest.raises(UserError, match=said):
        truematch.read_bags([tmp_path / "bags.json"])


# --- FineCapEval ------------------------------------------------------------------------------------

ROWS = [
    ("one.jpg", "Two dogs run.", r"green grass\;a lake", "dogs; red  ball", "dogs chasing ball"),
    ("one.jpg", "Dogs play", "grass", "dog", "nan"),
    ("a/two.PNG", "", "", "cat; houses", "none"),
]  # fmt: skip


def csv_file(
    path: Path, rows: Sequence[tuple[str, ...]] = ROWS, columns: str = "image,caption,background,object,relation"
) -> Path:
    lines = [columns, *(",".join(f'"{value}"' for value in row) for row in rows)]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_phrases_by_hand(tmp_path: Path) -> None:
    known = finecapeval.read(csv_file(tmp_path / "f.csv"))
    assert known.captions == {"one": ["Two dogs run.", "Dogs play"]} and known.images == ["one", "a/two"]
    assert known.phrases["background"] == {"one": ["green grass", "a lake", "grass"]}
    assert known.phrases["relation"] == {"one": ["dogs chasing ball"]}
    said = {"one": "A DOG chases a red ball over scattered grass.", "a/two": "Scattered Houses"}
    found = finecapeval.compute(known, said)
    # green grass 1/2, a lake 1/2, grass 1; dogs 1, red ball 1, dog 1; all of the relation. Scattered is no cat.
    assert (
        found.recall["background"].value == pytest.approx(100 * (0.5 + 0.5 + 1) / 3)
        and found.recall["background"].n == 1
    )
    assert found.recall["object"].value == pytest.approx((100 + 50) / 2) and found.recall["object"].n == 2
    assert found.recall["relation"].value == 100.0 and found.missing == 0
    assert found.recall["object"].each == pytest.approx({"one": 100.0, "a/two": 50.0})
    assert finecapeval.compute(known, {}).recall["relation"].each == {"one": 0.0}
    none = finecapeval.compute(known, {"a/two": " "})
    assert none.missing == 2 and none.recall["object"].value == 0.0


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (ROWS, "image,text,background,object,relation", "no column 'caption'"),
        ([("x.jpg", "a", "", " ; ", "nan")], "image,caption,background,object,relation", "no phrase"),
    ],
)
def test_tables_that_are_none_are_named(
    rows: Sequence[tuple[str, ...]], columns: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        finecapeval.read(csv_file(tmp_path / "f.csv", rows, columns))


# --- through the jobs -------------------------------------------------------------------------------


def key(number: int) -> str:
    return f"{number:08d}"


def true(number: int) -> str:
    return shapes.caption(shapes.sample(3, number, side=SIDE).scene)


EMPTY, FAILS, MISSING = 2, 5, 7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """in/ (a tar), clip/, captions: mine/ (of each picture the true one but for a few), same/ (one for all)."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "in").mkdir()
    shapes.write_shard(folder / "in" / "0.tar", seed=3, first=0, samples=SAMPLES, side=SIDE)
    write_clip(folder / "clip")
    mine = {key(n): true(n) for n in range(SAMPLES)} | {key(EMPTY): "", key(FAILS): UNDRAWABLE}
    del mine[key(MISSING)]
    for name, texts in (("mine", mine), ("same", dict.fromkeys(mine, "A red circle."))):
        (folder / name).mkdir()
        pq.write_table(pa.table({"key": list(texts), "caption": list(texts.values())}), folder / name / "0.parquet")
    return folder


def features_of(world: Path, name: str, shards: Path, texts: str = "") -> Path:
    columns = {"caption": {"folder": str(world / texts), "field": "caption"}} if texts else {}
    data = {"shards": [str(shards)], "columns": columns}
    tree = {
        "name": name, "runs": str(world / "runs"), "operator": "recap.score.operator.ScoreOperator",
        "decode_workers": 0, "data": data, "texts": ["caption"] if texts else [],
        "scorers": {"features": {"clip": {"model": str(world / "clip")}}},
    }  # fmt: skip
    return published(tree).path


def rendered(world: Path, name: str, captions: dict[str, str], **prompts: Any) -> Path:
    """What the world's own renderer draws: a sampling run, and its tars."""
    file = world / f"{name}.jsonl"
    file.write_text("".join(json.dumps({"key": k, "prompt": text}) + "\n" for k, text in captions.items()))
    tree = {
        "name": name, "runs": str(world / "runs"), "operator": "tests.evaluate.render.Render", "batch": 4,
        "prompts": {"file": str(file), "shard": 5, **prompts},
    }  # fmt: skip
    run = published(tree).path
    write_images.write(Published(run), world / f"{name}-tars", 0, tars=True)
    return run


@pytest.fixture(scope="module")
def originals(world: Path) -> Path:
    return features_of(world, "originals", world / "in", "mine")


def test_a_caption_for_all_images_finds_one_of_a_bag(world: Path, originals: Path) -> None:
    """Through the job and the suite: 1 / size, whatever the CLIP; a picture without a caption stands in its bag."""
    same = features_of(world, "same", world / "in", "same")
    bags = world / "bags.json"
    bags.write_text(json.dumps([[0, 1, 2], [3, 4, 6], [8, 9, 10, 11, 0], [MISSING, 1]]))
    done = inline("recap.evaluate.suite", "truematch", str(same), "--bags", str(bags), "--json")
    found = json.loads(done.stdout)
    assert [round(found["metrics"][f"R@1 of {size}"]["value"], 3) for size in (3, 5)] == [33.333, 20.0]
    assert found["metrics"]["R@1 of 2"]["value"] in (0.0, 50.0)  # the one that has a caption, or the other
    assert found["account"]["bags"] == {"bags": 4, "incomplete": 0, "missing": 1}
    assert found["account"]["features"]["cut_share"] == 0.0
    long = inline("recap.evaluate.suite", "truematch", str(originals), "--bags", str(bags))
    assert "cut share 1.00" not in long.stdout and "cut share 0.9" in long.stdout  # all but "NaN"
    wrong = inline("recap.evaluate.suite", "truematch", str(originals), "--bags", str(bags), "--text", "alt")
    assert wrong.returncode == Exit.USAGE and "features of texts: caption. Name one" in wrong.stderr


def test_pictures_of_true_captions_equal_their_images_and_edited_ones_do_not(world: Path, originals: Path) -> None:
    """The world's renderer draws a true caption's picture to the pixel: 1.0."""
    assert all(scene_of(true(n)).groups == shapes.sample(3, n, side=SIDE).scene.groups for n in range(SAMPLES))
    captions = {key(n): true(n) for n in range(SAMPLES)} | {key(EMPTY): " ", key(FAILS): UNDRAWABLE}
    del captions[key(MISSING)]
    scores = {}
    for name, edit in (
        ("true", str),
        ("edited", lambda text: text.replace("circle", "square").replace("white", "gray")),
    ):
        run = rendered(world, name, {k: edit(text) for k, text in captions.items()})
        pictures = features_of(world, f"{name}-again", world / f"{name}-tars")
        done = inline(
            "recap.evaluate.suite", "image2text", str(originals), "--pictures", str(pictures), "--samples", str(run),
            "--json",
        )  # fmt: skip
        scores[name] = json.loads(done.stdout)
        account = scores[name]["account"]["captions"]
        assert {n: account[n] for n in ("empty", "missing", "undrawn")} == {"empty": 1, "missing": 1, "undrawn": 1}
    whole = scores["true"]["metrics"]["Image2Text"]
    assert whole["n"] == SAMPLES - 1 and whole["value"] == pytest.approx((SAMPLES - 3) / (SAMPLES - 1), abs=1e-5)
    assert scores["edited"]["metrics"]["Image2Text"]["value"] < whole["value"] - 1e-4


def test_some_captions_alone(world: Path, originals: Path) -> None:
    """Where a sampling run was asked for the first few, the others are none of it; foreign keys are named."""
    run = rendered(world, "few", {key(n): true(n) for n in range(SAMPLES)}, first=4)
    pictures = features.read(features_of(world, "few-again", world / "few-tars"))
    known = features.read(originals)
    found = image2text.compute(known, pictures, image2text.read_drawn(run)[""], first_alone=True)
    assert (found.score.n, found.missing) == (4, 0) and found.score.value == pytest.approx(1.0, abs=1e-5)
    assert found.score.each == pytest.approx({("0", key(n)): 1.0 for n in range(4)}, abs=1e-5)
    with pytest.raises(UserError, match="has the key of a caption"):
        image2text.compute(known, pictures, {"x": image2text.Drawn("x", "ok", False)})
    with pytest.raises(UserError, match="none of 4 pictures"):
        foreign = Features(Path("runs/p"), {("0", "x"): next(iter(pictures.images.values()))})
        image2text.compute(known, foreign, image2text.read_drawn(run)[""], first_alone=True)
    with pytest.raises(UserError, match="no sampling run"):
        image2text.read_drawn(originals)
    next(run.rglob("*.done")).unlink()
    with pytest.raises(UserError, match="1 of 1 shards are not finished"):
        image2text.read_drawn(run)


def test_shards_that_are_not_finished_stand_beside_the_number(world: Path) -> None:
    """Of a run that goes on, or whose shard failed, the number is of what is there, and says what is not."""
    (world / "two").mkdir()
    for shard in range(2):
        shapes.write_shard(world / "two" / f"{shard}.tar", seed=3, first=2 * shard, samples=2, side=SIDE)
    run = features_of(world, "half", world / "two")
    assert "unfinished_shards" not in features.read(run).account
    with pytest.raises(UserError, match="features of texts: none"):
        features.read(run, captions=True)
    next(run.rglob("*.done")).unlink()
    assert features.read(run).account == {"images": 2, "unread": 0, "unfinished_shards": 1}
    assert judged.read(run, ["clip"]).account["unfinished_shards"] == 1


def test_finecapeval_through_the_suite(world: Path, originals: Path) -> None:
    rows = [(f"{key(n)}.jpg", true(n), "white", "circle; star", "left") for n in (0, 1, EMPTY, MISSING)]
    data = csv_file(world / "fine.csv", rows)
    done = inline(
        "recap.evaluate.suite", "finecapeval", str(world / "mine"), "--data", str(data), "--tokenizer", "plain",
        "--features", str(originals), "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    ranks, _ = finecapeval.retrieval(features.read(originals, captions=True), [key(n) for n in (0, MISSING)])
    assert ranks[1].each[("0", key(MISSING))] == 0.0 and len(ranks[1].each) == 2
    said = [true(n).lower() if n in (0, 1) else "" for n in (0, 1, EMPTY, MISSING)]
    wanted = [100 * ("circle" in text) / 2 + 100 * ("star" in text) / 2 for text in said]
    assert found["metrics"]["object"]["value"] == pytest.approx(sum(wanted) / 4)
    assert found["metrics"]["background"]["value"] == pytest.approx(100 * sum("white" in text for text in said) / 4)
    assert found["account"]["images"] == {"n": 4, "missing": 2, "extra": SAMPLES - 4}
    assert found["metrics"]["text to image R@5"]["value"] == 50.0  # four images: a caption finds its own among five
    assert found["account"]["features"]["missing"] == 2 and "overall CIDEr-D" in found["metrics"]
