"""Metrics of captions: equal to COCO's own, closed forms, and a judge whose right answers are known."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.bleu.bleu import Bleu

from hpc.base.errors import Exit
from recap.evaluate import battles, classics, diversity, judged
from recap.evaluate.intervals import bootstrap_mean, bootstrap_mean_of_means
from recap.worlds import shapes
from recap.worlds.oracle import Truths, serving
from tests.support.jobs import command, inline

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java (default-jre-headless) is not installed")


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "classics.json").read_text())


@needs_java
def test_classics_equal_cocoevalcap(fixture: dict[str, Any]) -> None:
    """The expected values are literals, made once by pycocoevalcap with its own tokenizer (make_classics.py)."""
    found = classics.scores(fixture["captions"], fixture["references"])
    for name, value in fixture["expected"].items():
        if name != "METEOR":
            score = found.scores[name]
            assert score.value == pytest.approx(value, abs=1e-9), name
            assert score.low < value < score.high and score.n == 50


@needs_java
@pytest.mark.slow(ci=True)  # it reads 60 MB of paraphrases: 20 seconds of a core
def test_meteor_equals_cocoevalcap(fixture: dict[str, Any]) -> None:
    found = classics.scores(fixture["captions"], fixture["references"], meteor=True)
    assert found.scores["METEOR"].value == pytest.approx(fixture["expected"]["METEOR"], abs=1e-9)


@needs_java
def test_no_text_moves_others_to_other_images() -> None:
    """Line separators, empty texts and METEOR's own mark are inside a text: what follows stays where it is."""
    texts = ["one\u2028two", "", "a ||| b", "c\r\nd\x85e", " ", "last one."]
    cut = classics.tokenized(texts, "ptb")
    assert cut == ["one two", "", "a b", "c d e", "", "last one"]


def test_java_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "a", {"k": "a red flag"})
    monkeypatch.setenv("PATH", str(tmp_path))
    done = inline("recap.evaluate.suite", "classics", str(tmp_path / "a"), "--references", str(tmp_path / "a"))
    assert done.returncode == Exit.USAGE and "need Java" in done.stderr and "--tokenizer plain" in done.stderr


def write(folder: Path, texts: dict[str, str], field: str = "caption") -> None:
    folder.mkdir()
    pq.write_table(pa.table({"key": list(texts), field: list(texts.values())}), folder / "0.parquet")


def test_diversity_is_what_is_counted_by_hand(tmp_path: Path) -> None:
    found = diversity.compute({"a": "a red flag", "b": "a blue flag", "c": "a red flag"})
    assert (found.n, found.words.value, found.vocabulary) == (3, 3.0, 4)
    assert found.distinct[:3] == [4 / 9, 4 / 6, 2 / 3]
    same = diversity.compute({str(n): "one and the same text" for n in range(5)}).self_bleu
    assert same is not None and same.value == pytest.approx(1.0)
    write(tmp_path / "c", {"a": "über den Fluss", "b": "über"})
    done = inline("recap.evaluate.suite", "diversity", str(tmp_path / "c"), "--json")
    assert json.loads(done.stdout)["metrics"]["vocabulary"] == 3


def test_self_bleu_is_bleu_against_the_others() -> None:
    """Equal to COCO's BLEU-4 of each text with all others as references."""
    rng = random.Random(0)
    texts = {
        str(n): " ".join(rng.choices(["a", "red", "blue", "flag", "with", "of", "white"], k=rng.randrange(6, 12)))
        for n in range(9)
    }
    others = {key: [other for k, other in texts.items() if k != key] for key in texts}
    made = {key: [text] for key, text in texts.items()}
    expected = [Bleu(4).compute_score({k: others[k]}, {k: made[k]}, verbose=0)[0][3] for k in texts]
    found = diversity.compute(texts).self_bleu
    assert found is not None and found.value == pytest.approx(sum(expected) / 9, abs=1e-4) and found.n == 9
    assert found.each == pytest.approx(dict(zip(texts, expected, strict=True)), abs=1e-4)


def answered(rows: list[dict[str, Any]]) -> judged.Judged:
    return judged.Judged(Path("runs/x"), rows, len(rows))


def test_battles_by_hand() -> None:
    def row(verdict: str, first: str, second: str) -> dict[str, Any]:
        return {"shard": "0", "key": "k", "verdict": verdict, "order": [first, second]}

    rows = [row("first", "ours", "theirs"), row("second", "theirs", "ours"), row("first", "theirs", "ours")]
    rows.append(row("tie", "ours", "theirs"))
    found = battles.compute(answered(rows))
    assert (found.wins, found.losses, found.ties, found.score.value) == (2, 1, 1, 25.0)
    swapped = [
        {**r, "order": r["order"][::-1], "verdict": {"first": "second", "second": "first"}.get(r["verdict"], "tie")}
        for r in rows
    ]
    assert battles.compute(answered(swapped)).score == found.score  # the place of a side is nothing
    assert battles.compute(answered(rows), "theirs").score.value == -25.0
    ties = battles.compute(answered([row("tie", "ours", "theirs")] * 4))
    assert (ties.score.value, ties.first) == (0.0, None)


def test_a_mean_of_opponents_has_an_interval_over_images() -> None:
    """Equal battles with two opponents are no more sure than with one; what one opponent lacks is not 0."""
    one = {n: 100.0 * (n % 3 - 1) for n in range(30)}
    alone, twice = bootstrap_mean(list(one.values())), bootstrap_mean_of_means([one, one])
    assert twice.n == 30
    assert [twice.value, twice.low, twice.high] == pytest.approx([alone.value, alone.low, alone.high])
    found = bootstrap_mean_of_means([{"a": 4.0, "b": 2.0}, {"a": 1.0}])
    assert found.each == {"a": 2.5, "b": 2.0}
    assert found.value == 2.0 and found.n == 2 and 1.5 <= found.low <= 2.0 <= found.high <= 2.5 + 1e-9


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("battles")
    (folder / "in").mkdir()
    shapes.write_shard(folder / "in" / "0.tar", seed=3, first=0, samples=24, side=64)
    captions = {f"{n:08d}": shapes.caption(shapes.sample(3, n, side=64).scene) for n in range(24)}
    others = [*list(captions.values())[1:], next(iter(captions.values()))]
    write(folder / "right", captions)
    same = {f"{n:08d}": captions[f"{n:08d}"] for n in (3, 7, 11)}
    write(folder / "planted", dict(zip(captions, others, strict=True)) | same | {"00000005": ""})
    return folder


@pytest.mark.slow(ci=True)
def test_an_arena_with_a_judge_that_knows(world: Path) -> None:
    """Captions of other pictures lose to the true ones but where they are the same; failures are counted."""
    with serving(Truths([world / "in" / "0.tar"])) as (url, _):
        done = command(
            "hpc.launch", "configs/systems/caparena.yaml", f"runs={world}", "name=battle", f"data.shards=[{world}/in]",
            "data.columns.ours.run=null", f"data.columns.ours.folder={world}/right",
            "data.columns.ours.field=caption", "data.columns.theirs.field=caption", "data.columns.theirs.run=null",
            f"data.columns.theirs.folder={world}/planted", f"writer.endpoint={url}",
            "writer.served_model=oracle/compare?unparsed=0.1&refused=0.1&seed=5", "map.min_free_gb=0",
            "map.max_failed=1",
        )  # fmt: skip
    assert done.returncode == Exit.COMPLETE, done.stdout + done.stderr
    report = inline("recap.evaluate.suite", "caparena", str(world / "battle"), "--json")
    found = json.loads(report.stdout)
    account = found["account"]["battle"]
    assert account["empty"] == 1 and account["unparsed"] > 0 and account["refused"] > 0
    assert account["wins"] + account["losses"] + account["ties"] == 24 - 1 - account["unparsed"] - account["refused"]
    assert account["losses"] == 0 and account["ties"] >= 1 and found["metrics"]["battle"]["value"] > 80
    text = inline("recap.evaluate.suite", "caparena", str(world / "battle"), "--of", "nobody")
    assert text.returncode == Exit.USAGE and "--of" in text.stderr
