"""The released data set's row, from the shipped pipeline: every score is made by a job, exported, and in the table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit
from hpc.pipeline import definition as pipeline
from recap.generate.parsers import RatingParser, Unparsed
from recap.worlds import shapes
from recap.worlds.oracle import Truths, serving
from tests.score.conftest import write_clip
from tests.support.jobs import ROOT, inline
from tests.support.published import published, rows_of

SAMPLES = 24


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The pipeline's map stages over a world whose truth is known; every third alt-text is another image's."""
    folder = tmp_path_factory.mktemp("core")
    shapes.write_shard(folder / "0.tar", seed=5, first=0, samples=SAMPLES, side=48)
    write_clip(folder / "clip")
    stages = stages_in(folder)
    with serving(Truths([folder / "0.tar"])) as (url, _):
        for name in ("caption", "scores", "re", "org"):
            config = stages[name].config
            assert config is not None
            tree: dict[str, Any] = {**config.resolved, "runs": str(folder), "name": name}
            tree["cluster"] = {"kind": "local"}
            tree["data"] = {**tree["data"], "shards": [str(folder / "0.tar")]}
            if name == "caption":
                tree["captioner"] = {**tree["captioner"], "decode_workers": 0, "max_tokens": 12}
            elif name == "scores":
                tree["scorers"]["clip"]["clip"]["model"] = str(folder / "clip")
                tree["decode_workers"] = 0
            else:
                tree["writer"]["endpoint"] = url
            published(tree)
    yield folder


def stages_in(folder: Path) -> Any:
    """The shipped pipeline's stages, as they are in a pipeline's directory."""
    given = [f"runs={folder.parent}", f"name={folder.name}", "cluster=local"]
    return pipeline.load(ROOT / "configs/systems/core_row.yaml", given).stages


def run(runs: Path, stage: str) -> str:
    """A command stage's own command; what it prints."""
    _, _, module, *arguments = stages_in(runs)[stage].command
    (runs / stage).mkdir(exist_ok=True)
    done = inline(module, *arguments)
    assert done.returncode == Exit.COMPLETE, done.stderr
    return done.stdout


def test_the_exported_row_is_whole(runs: Path) -> None:
    run(runs, "export")
    table = pq.read_table(next((runs / "export" / "data_set" / "data").iterdir())).to_pylist()
    scores = {row["key"]: row for row in rows_of(runs / "scores")}
    ratings = {side: {row["key"]: row["rating"] for row in rows_of(runs / side)} for side in ("re", "org")}
    assert len(table) == SAMPLES
    for row in table:
        assert row["re_clip_score"] == pytest.approx(scores[row["key"]]["clip_re"])
        assert row["org_clip_score"] == pytest.approx(scores[row["key"]]["clip_org"])
        assert row["re_gpt4v_score"] == ratings["re"][row["key"]]
        assert row["org_gpt4v_score"] == ratings["org"][row["key"]]
        assert row["org_length"] == len(row["org_caption"].split()) and row["re_length"] == len(
            row["re_caption"].split()
        )
        assert set(row.values()) - {None} and row["org_gpt4v_score"] in range(1, 6)


def test_the_papers_table(runs: Path) -> None:
    printed = run(runs, "statistics")
    captions = rows_of(runs / "caption")
    lines = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:4]]
        for line in printed.splitlines()
        if "│" in line
    }
    for side, field in ((0, "text"), (1, "caption")):
        words = [row[field].split() for row in captions]
        assert lines["words, mean"][side] == f"{sum(map(len, words)) / SAMPLES:.2f}"
        different = {word for row in captions for word in re.findall(r"\w+", row[field].lower())}
        assert lines["different words"][side] == f"{len(different):,}"
    shares = [float(cell.split()[0]) for cell in lines["CLIP share, mean ± 95 % (rows)"]]
    assert sum(shares) == pytest.approx(100, abs=0.02)
    ratings = [row["rating"] for row in rows_of(runs / "org")]
    assert lines["rating, mean ± 95 % (rows)"][0].startswith(f"{sum(ratings) / len(ratings):,.4g} ±")
    page = (runs / "statistics" / "statistics.html").read_text()
    assert page.count("<circle") == SAMPLES and page.count('role="img"') == 3 and "<script" not in page


def test_scores_that_cannot_be_joined_are_refused(runs: Path, tmp_path: Path) -> None:
    captions = str(runs / "caption")
    for given, said in (
        (["--scores", "clip=x"], "write SIDE.NAME=RUN:FIELD"),
        (["--scores", f"re.clip={runs / 'scores'}:none"], "has no field 'none'"),
    ):
        done = inline("recap.report", captions, "--statistics", "--out", str(tmp_path / "s.html"), *given)
        assert done.returncode == Exit.USAGE and said in done.stderr, done.stderr
    assert "belong to --statistics" in inline("recap.report", captions, "--all").stderr


def test_ratings_are_parsed_as_judges_word_them() -> None:
    assert RatingParser()("**Rating:** 4/5") == {"rating": 4}
    with pytest.raises(Unparsed, match="no rating"):
        RatingParser()("It is between 3 and 4.")
