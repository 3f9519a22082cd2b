"""Evaluation of captioners: texts, questions in MMMU's and MM-Vet's formats, facts of shapes."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.random_captioner import photo
from recap.demo import FLAGS
from recap.evaluate.captioner import main as score_flags
from recap.evaluate.captioner import score_shapes
from recap.evaluate.classics import scores
from recap.evaluate.questions import Question, as_table, grade_table, main, read_mmmu
from recap.evaluate.questions import mmmu as ask_mmmu
from recap.evaluate.questions import mmvet as ask_mmvet


def test_texts() -> None:
    """A perfect caption scores 1 (CIDEr 10 for rare words), one about nothing 0, order in between."""
    pytest.importorskip("pycocoevalcap")
    references = {"a": ["a red flag with a white cross"], "b": ["three horizontal bands of blue and green and gold"]}

    def plain(captions: dict[str, str]) -> dict[str, float]:
        return {name: score.value for name, score in scores(captions, references, "plain").scores.items()}

    perfect = plain({key: texts[0].upper() + "!" for key, texts in references.items()})
    assert perfect["BLEU-4"] == pytest.approx(1, abs=1e-6) and perfect["ROUGE-L"] == pytest.approx(1)
    assert perfect["CIDEr-D"] == pytest.approx(10, rel=1e-3)
    half = plain({"a": "a red flag", "b": references["b"][0]})
    assert 0 < half["ROUGE-L"] < 1 and half["CIDEr-D"] < perfect["CIDEr-D"]
    assert plain({})["ROUGE-L"] == 0


def references_of(*arguments: str) -> dict[str, float]:
    """What the command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert score_flags([*arguments, "--tokenizer", "plain"]) == 0
    return json.loads(out.getvalue())


def test_references_of_any_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples are joined by shard and key, exports by key; what is missing, and what is extra, is said."""
    pytest.importorskip("pycocoevalcap")
    for shard, keys in {"a": ("000", "001"), "b": ("000", "001", "002")}.items():
        words = {key: f"a picture of a {shard} number {key} on a table" for key in keys}
        rows = [{"key": key, "caption": text, "status": "ok"} for key, text in words.items()]
        rows[0]["status"] = "skipped" if shard == "b" else "ok"
        human = [{"key": key, "captions": [text, "x y"]} for key, text in words.items()][:2]
        for name, table in (("made", rows), ("human", human)):
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist(table), tmp_path / name / f"{shard}.parquet")
    found = references_of(str(tmp_path / "made"), "--references", str(tmp_path / "human"))
    assert {name: found[name] for name in ("n", "missing", "extra", "left_out")} == {
        "n": 4, "missing": 1, "extra": 1, "left_out": 1
    }  # fmt: skip
    assert 0.7 < found["ROUGE-L"] < 0.8  # three of four word for word
    (tmp_path / "export").mkdir()
    exported = [{"key": f"{n}", "re_caption": f"a red thing {n} here", "org_caption": f"thing {n}"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(exported), tmp_path / "export/0.parquet")
    own = references_of(str(tmp_path / "export"), "--references", str(tmp_path / "export"))
    assert own["n"] == 3 and 0 < own["ROUGE-L"] < 1
    same = ["--references", str(tmp_path / "export"), "--reference-field", "re_caption"]
    assert references_of(str(tmp_path / "export"), *same)["ROUGE-L"] == pytest.approx(1)
    (tmp_path / "numbers").mkdir()
    pq.write_table(pa.table({"key": ["0"], "size": [1]}), tmp_path / "numbers/0.parquet")
    for place, word in (("numbers", "has no texts"), ("human", "several shards"), ("nowhere", "no run directory")):
        assert score_flags([str(tmp_path / "export"), "--references", str(tmp_path / place)]) == 64
        assert word in capsys.readouterr().err
    flags = str(FLAGS.parent / "flags_columns/description")
    assert score_flags([str(tmp_path / "export"), "--references", flags]) == 64
    assert "no sample of" in capsys.readouterr().err


def test_references_of_the_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where both sides carry digests they have to agree; where no shards are in common, and keys repeat, they join."""
    pytest.importorskip("pycocoevalcap")

    def write(name: str, **shards: str) -> str:
        """A folder of columns: each shard's images, whose keys are 0, 1, ..."""
        (tmp_path / name).mkdir()
        for shard, images in shards.items():
            rows = [
                {"key": str(n), "caption": f"a picture of {image} here", "image_sha256": image}
                for n, image in enumerate(images)
            ]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / name / f"{shard}.parquet")
        return str(tmp_path / name)

    found = references_of(write("made", a="st", b="u"), "--references", write("packed", x="u", y="st"))
    assert (found["n"], found["missing"], found["extra"], found["ROUGE-L"]) == (3, 0, 0, pytest.approx(1))
    one, other = write("one", a="st"), write("other", a="sx")
    assert score_flags([one, "--references", other]) == 64
    said = capsys.readouterr().err
    assert all(word in said for word in ("shard a, sample 1:", f"column {one}", f"column {other}", "sha256 x", "has t"))


@pytest.fixture
def mmmu(tmp_path: Path) -> Path:
    """Two questions in MMMU's columns."""
    rows = [
        {
            "id": "validation_Art_Theory_1", "question": "<image 1> Which colour?", "options": "['red', 'blue']",
            "answer": "B", "question_type": "multiple-choice", "image_1": {"bytes": photo(1), "path": "1.jpg"},
        },
        {
            "id": "validation_Math_7", "question": "How many?", "options": "[]", "question_type": "open",
            "answer": "['3', 'three']",
            "image_1": {"bytes": photo(2), "path": "2.jpg"},
        },
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation.parquet")
    return tmp_path


def test_mmmu_reader(mmmu: Path) -> None:
    choice, opened = read_mmmu(mmmu)
    asked = "Which colour?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    assert choice.prompt() == asked
    assert (choice.subject, opened.subject) == ("Art_Theory", "Math")
    assert len(choice.images) == 1 and opened.options == [] and opened.answers == ["3", "three"]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", True), ("B. blue", True), ("The answer is B.", True), ("blue", True),
        ("A", False), ("red or blue", False), ("", False),
    ],
)  # fmt: skip
def test_which_option_an_answer_names(said: str, right: bool) -> None:
    assert Question("k", "s", "Which?", ["red", "blue"], ["B"], []).right(said) is right


@pytest.mark.parametrize(
    ("answers", "said", "right"),
    [
        (["3"], "There are 3.", True), (["3"], "13", False), (["1250"], "1,250.00 m", True), (["0.17"], "0.171", True),
        (["1/6", "0.167"], "about 0.167", True), (["Doric"], "a doric column", True), (["art"], "a party", False),
    ],
)  # fmt: skip
def test_open_answers(answers: list[str], said: str, right: bool) -> None:
    assert Question("k", "s", "How many?", [], answers, []).right(said) is right


def test_mmmu_and_mmvet_with_a_model(
    captioner: Path, mmmu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mmmu", str(mmmu), "--model", str(captioner)]) == 0
    assert "all " in capsys.readouterr().out
    data = tmp_path / "vet"
    (data / "images").mkdir(parents=True)
    (data / "images" / "v1_0.png").write_bytes(photo(3, format="PNG"))
    rows = {"v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "1", "capability": ["ocr", "math"]}}
    (data / "mm-vet.json").write_text(json.dumps(rows))
    assert main(["mmvet", str(data), "--model", str(captioner), "--out", str(tmp_path / "answers.json")]) == 0
    assert list(json.loads((tmp_path / "answers.json").read_text())) == ["v1_0"]
    assert main(["mmvet", str(tmp_path), "--model", str(captioner), "--out", "x"]) == 64
    assert main(["mmmu", str(mmmu), "--model", "/nowhere"]) == 64
    assert main(["mmvet-grades", str(data), str(data / "mm-vet.json")]) == 64
    assert score_flags(["--model", "/nowhere"]) == 64 and score_flags([str(data)]) == 64


def test_questions_whose_image_cannot_be_read_are_counted(tmp_path: Path) -> None:
    class Says:
        def ask(self, *_: object) -> str:
            return "B"

    asked = [Question(f"{n}", "Art", "?", ["red", "blue"], ["B"], [image]) for n, image in enumerate([photo(1), b"no"])]
    counts, skipped = ask_mmmu(iter(asked), Says(), None)
    assert counts == {"Art": (1, 1)} and list(skipped) == ["1"]
    assert "n 1 · skipped 1" in as_table(counts, skipped)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(photo(1))
    rows = {key: {"imagename": f"{key}.jpg", "question": "?", "answer": "B", "capability": ["ocr"]} for key in "ab"}
    (tmp_path / "mm-vet.json").write_text(json.dumps(rows))
    answers, skipped = ask_mmvet(tmp_path, Says(), None)
    assert answers == {"a": "B"} and list(skipped) == ["b"]


def test_mmvet_grades() -> None:
    rows = {"a": {"capability": ["ocr"]}, "b": {"capability": ["ocr", "math"]}, "c": {"capability": ["math"]}}
    table = grade_table(rows, {"a": {"score": [1.0, 0.5]}, "b": {"score": [0.25]}})
    assert table == {"ocr": 50.0, "total": pytest.approx(100 / 3), "math": 12.5}


def test_shapes(captioner: Path) -> None:
    found = score_shapes(captioner, 3)
    assert found["correct"].total == 3 and found["complete"].right <= found["correct"].right
