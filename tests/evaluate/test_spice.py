"""SPICE: what its jar is asked, what its answers come to, and what is said where it cannot run.

A script stands for Java: the parses need 400 MB that are no package. With them, on a Java up to 14:
    SPICE=/path/to/stanford-corenlp-full-2015-12-09 python -m pytest -m slow tests/evaluate/test_spice.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit, UserError
from recap.evaluate import classics, spice
from tests.support.jobs import inline

JAVA = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1:] == ["-version"]:
    print('openjdk version "' + os.environ["JAVA_VERSION"] + '" 2014-04-16', file=sys.stderr)
    sys.exit()
options = sys.argv[sys.argv.index("edu.anu.spice.SpiceScorer") + 1 :]
asked = json.load(open(options[0]))
if any("fail" in one["test"] for one in asked):
    sys.exit("Exception in thread main")
def scored(one):
    said, known = set(one["test"].replace(".", "").split()), set(" ".join(one["refs"]).replace(".", "").split())
    tp = len(said & known)
    total = len(said) + len(known)
    f = 2 * tp / total if total else float("nan")
    return {{"All": {{"f": f, "tp": tp, "fp": len(said) - tp, "fn": len(known) - tp}}}}
answers = [{{"image_id": one["image_id"], "scores": scored(one)}} for one in asked if "lost" not in one["test"]]
json.dump(answers, open(options[options.index("-out") + 1], "w"))
json.dump(sys.argv, open(os.environ["SAID"], "w"))
"""


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "bin" / "java"
    file.parent.mkdir()
    file.write_text(JAVA)
    file.chmod(0o755)
    monkeypatch.setenv("JAVA_VERSION", "1.8.0_392")
    monkeypatch.setenv("SAID", str(tmp_path / "said.json"))
    monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
    return str(file)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "corenlp"
    folder.mkdir()
    for name in spice.JARS:
        (folder / name).touch()
    return folder


def test_a_mean_over_samples_that_have_elements(java: str, models: Path, tmp_path: Path) -> None:
    made = {"a": ["red flag"], "b": [""], "c": [""], "d": ["größe"]}
    wanted = {"a": ["red", "flag white"], "b": ["dog"], "c": [""], "d": ["größe"]}
    found = spice.scores(made, wanted, classics._package(), models, java)
    assert found.score is not None and found.score.value == pytest.approx((4 / 5 + 0 + 1) / 3)
    assert found.score.each == pytest.approx({"a": 4 / 5, "b": 0.0, "d": 1.0})
    assert (found.score.n, found.bare) == (3, 1)  # c has nothing on either side
    said = (tmp_path / "said.json").read_text()
    for part in ("spice-1.0.jar", "Meteor-1.5.jar", *spice.JARS):
        assert part in said
    nothing = spice.scores({"c": [""]}, {"c": [""]}, classics._package(), models, java)
    assert nothing == spice.Spice(None, 1)


@pytest.mark.parametrize(("text", "said"), [("fail", "Exception in thread main"), ("lost", "answers for 0 of 1")])
def test_a_jar_that_fails_is_told(text: str, said: str, java: str, models: Path) -> None:
    with pytest.raises(UserError, match=said):
        spice.scores({"a": [text]}, {"a": ["x"]}, classics._package(), models, java)


def test_what_lacks_is_said_before_anything_is_measured(
    java: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table({"key": ["k"], "caption": ["a red flag"]}), tmp_path / "a" / "0.parquet")

    def asked(*more: str) -> Any:
        return inline(
            "recap.evaluate.suite", "classics", str(tmp_path / "a"), "--references", str(tmp_path / "a"), *more
        )

    lacking = asked("--spice", str(tmp_path))
    assert lacking.returncode == Exit.USAGE and "stanford-corenlp-3.6.0.jar is not there" in lacking.stderr
    assert "stanford-corenlp-full-2015-12-09.zip" in lacking.stderr
    plain = asked("--spice", str(models), "--tokenizer", "plain")
    assert plain.returncode == Exit.USAGE and "made of PTB tokens" in plain.stderr
    monkeypatch.setenv("JAVA_VERSION", "17.0.15")
    late = asked("--spice", str(models))
    assert late.returncode == Exit.USAGE and "is Java 17" in late.stderr and "nashorn-core" in late.stderr
    (models / "nashorn-core-15.4.jar").touch()
    spice.check(models, java)
    monkeypatch.setenv("JAVA_VERSION", "14.0.2")
    (models / "nashorn-core-15.4.jar").unlink()
    spice.check(models, java)


@pytest.mark.slow
@pytest.mark.skipif("SPICE" not in os.environ, reason="SPICE names no folder of Stanford CoreNLP 3.6.0")
def test_spice_itself() -> None:
    """Equal texts have all elements; of two objects with an attribute each, one that is wrong is one tuple of four."""
    texts = {"a": "A red flag and a blue car.", "b": "A red flag and a green car.", "c": ""}
    found = classics.scores(texts, {key: [texts["a"]] for key in texts}, spice_models=Path(os.environ["SPICE"])).spice
    assert found is not None and found.score is not None and found.score.n == 3
    assert found.score.value == pytest.approx((1 + 3 / 4 + 0) / 3, abs=0.05)
