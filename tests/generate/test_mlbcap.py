"""MLBCAP from its config: writers that are often wrong, a judge that picks, the best caption refined."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc.pipeline import definition as pipeline
from recap.engine.formats import Places, one_line
from recap.worlds import shapes
from recap.worlds.oracle import Truths, serving
from recap.worlds.tars import write_tar
from tests.support.jobs import ROOT
from tests.support.published import published, rows_of

SAMPLES = 40
WRITERS = {"a": "caption?wrong=0.6&seed=1", "b": "caption?wrong=0.6&seed=2", "c": "caption?wrong=0.6&seed=3"}


def figure(number: int) -> dict[str, bytes]:
    """A picture of shapes, and what a paper says of every other one."""
    made = shapes.files(shapes.sample(5, number, side=48))
    said = {"mention": f"See Fig. {number}.", "paragraph": "It holds shapes.", "ocr": "x"} if number % 2 else {}
    return made | {"json": json.dumps(json.loads(made["json"]) | said).encode()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs of the pipeline's stages, each answered by the oracle."""
    folder = tmp_path_factory.mktemp("mlbcap")
    with (folder / "0.tar").open("wb") as file:
        write_tar(file, ((f"{number:08d}", figure(number)) for number in range(SAMPLES)))
    given = [f"runs={folder.parent}", f"name={folder.name}", "cluster=local"]
    stages = pipeline.load(ROOT / "configs/systems/mlbcap.yaml", given).stages
    tasks = {**WRITERS, "rated": "rating", "picked": "pick", "refined": "fuse"}
    with serving(Truths([folder / "0.tar"])) as (url, _):
        for name, stage in stages.items():
            assert stage.config is not None
            tree: dict[str, Any] = {**stage.config.resolved, "runs": str(folder), "name": name}
            tree["cluster"] = {"kind": "local"}
            if tree["data"].get("shards"):
                tree["data"]["shards"] = [str(folder / "0.tar")]
            if name in tasks:
                served = {"backend": "openai", "endpoint": [url], "served_model": f"oracle/{tasks[name]}"}
                tree["writer"] = tree["writer"] | served | {"template": None}
            if name == "refined":  # the oracle must know whose caption it is: it believes what it is told to be seen
                tree["formats"]["refine"]["text"] = "What can be seen: {caption}"
            published(tree)
        yield folder


def merit(text: str, number: int) -> int:
    found = shapes.judge(text, shapes.sample(5, number, side=48).scene)
    return len(found.verdicts) - 2 * len(found.wrong)


def test_the_best_is_as_true_as_any_writers(made: Path) -> None:
    written = {name: rows_of(made / name) for name in WRITERS}
    picked, best = rows_of(made / "picked"), rows_of(made / "best")
    places = {"first": "a", "second": "b", "third": "c"}
    for number in range(SAMPLES):
        merits = {name: merit(rows[number]["caption"], number) for name, rows in written.items()}
        row = best[number]
        assert row["status"] == "ok" and merit(row["caption"], number) == max(merits.values())
        assert row["source"] == places[picked[number]["verdict"]]
        assert row["caption"] == one_line(written[row["source"]][number]["caption"])
        assert "Facts more right than wrong" in picked[number]["caption"]  # the judge's reasons are kept
    mean = {n: sum(merit(r["caption"], i) for i, r in enumerate(rows)) / SAMPLES for n, rows in written.items()}
    mean["best"] = sum(merit(row["caption"], number) for number, row in enumerate(best)) / SAMPLES
    assert mean["best"] > max(mean[name] for name in WRITERS) + 1
    assert set(Counter(row["source"] for row in best)) == {"a", "b", "c"}


def test_the_refined_caption_is_of_the_best(made: Path) -> None:
    best = rows_of(made / "best")
    assert [row["caption"] for row in rows_of(made / "refined")] == [row["caption"] for row in best]


def test_good_figures_are_those_that_are_rated_so(made: Path) -> None:
    rated, good = rows_of(made / "rated"), rows_of(made / "good")
    assert [row["status"] == "ok" for row in good] == [row["rating"] >= 4 for row in rated]
    assert {row["status"] for row in good} == {"ok", "skipped"}


def test_what_the_paper_says_is_asked_where_it_does() -> None:
    """Lines of what there is; without any, the figure alone."""
    config = pipeline.load(ROOT / "configs/systems/mlbcap.yaml", ["cluster=local"]).stages["a"].config
    assert config is not None
    places = Places.of(config.work.formats["figure"])
    whole = places.fill(places.text, {"mention": "Fig. 2 shows it.", "paragraph": "We see it.", "ocr": "x 1 2"})
    assert whole.splitlines()[1:] == [
        "The paper mentions it so: Fig. 2 shows it.", "It stands in this paragraph: We see it.",
        "Text in the figure: x 1 2", "Caption:",
    ]  # fmt: skip
    some = places.fill(places.text, {"mention": "", "paragraph": "We see it.", "ocr": ""})
    assert some.splitlines()[1:] == ["It stands in this paragraph: We see it.", "Caption:"]
