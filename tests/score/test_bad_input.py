"""What scorers say of models and rows that do not fit: at launch where it can be known, else a reason a row."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from hpc import config as configs
from hpc import launch
from hpc.base.errors import ShardError, UserError
from hpc.operator import OK
from recap.score.operator import NOT_FINITE, ScoreOperator
from recap.select.statistics_file import Statistics
from recap.worlds.tars import write_tar
from tests.score import models
from tests.score.conftest import tree
from tests.select.worlds import selecting
from tests.support.jobs import inline
from tests.support.published import published, rows_of


def checked(given: dict[str, Any]) -> configs.Config:
    return configs.check({"cluster": {"kind": "local"}, **given}, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    made = tmp_path_factory.mktemp("bad")
    models.encoder(made / "bert")
    models.classifier(made / "nameless", ["LABEL_0", "LABEL_1", "LABEL_2"])
    models.sentence_encoder(made / "greatest", made / "bert", "max_tokens")
    models.sentence_encoder(made / "dense", made / "bert")
    modules = json.loads((made / "dense" / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (made / "dense" / "modules.json").write_text(json.dumps(modules))
    heads: dict[str, Any] = {
        "wide": {"weight": (1, 768)}, "two": {"weight": (2, 16)}, "gap": {"0.weight": (8, 16), "1.weight": (1, 9)},
        "more": {"weight": (1, 16), "scale": (1,)}, "cube": {"weight": (1, 16, 2)}, "other": {"x": (1,)},
    }  # fmt: skip
    for name, shapes in heads.items():
        save_file({k: np.zeros(shape, np.float32) for k, shape in shapes.items()}, made / f"{name}.safetensors")
    (made / "torn.safetensors").write_bytes(b"\x00" * 20)
    (made / "head.pth").write_bytes(b"")
    return made


@pytest.mark.parametrize(
    "kind, settings, said",
    [
        ("nli", {"model": "nameless"}, "LABEL_0, LABEL_1, LABEL_2. Write the labels' names"),
        ("nli", {"model": "bert"}, "holds BertModel, expected one that ends in ForSequenceClassification"),
        ("reward", {"model": "nameless"}, "has 3 labels, a reward is one number"),
        ("reward", {"model": "nameless", "of": "audio"}, "`scorers.reward.a.of`: 'audio' is unknown"),
        ("reward", {"model": "bert", "of": "image"}, "expected one that ends in ForImageClassification"),
        ("itm", {"model": "bert"}, "expected one that ends in BlipForImageTextRetrieval"),
        ("logprob", {"model": "bert"}, "is a bert; known here are LLaVA checkpoints"),
        ("logprob", {"model": "none"}, "`scorers.logprob.a.model`: Model .*none"),
        ("similarity", {"model": "none"}, r"none is no model: a folder with \*.safetensors"),
        ("similarity", {"model": "greatest"}, "pools by pooling_mode_max_tokens; known are"),
        ("similarity", {"model": "dense"}, "has a module Dense; known are"),
        ("bert_score", {"model": "bert", "layer": 4}, r"layer`: 4; .* has 3. 0 is the last"),
        ("bert_score", {"model": "bert", "precision": "fp8"}, "`scorers.bert_score.a.precision`: 'fp8' is unknown"),
        ("head", {"model": "clip", "weights": "wide.safetensors"}, "takes features of 768 numbers, .* makes 16"),
        ("head", {"model": "clip", "weights": "two.safetensors"}, "weight makes 2 numbers, 1 is expected"),
        ("head", {"model": "clip", "weights": "gap.safetensors"}, "takes 9 numbers, the layer before makes 8"),
        ("head", {"model": "clip", "weights": "more.safetensors"}, "scale is of no linear layer"),
        ("head", {"model": "clip", "weights": "cube.safetensors"}, "weight has 3 dimensions"),
        ("head", {"model": "clip", "weights": "other.safetensors"}, "no tensor is called weight"),
        ("head", {"model": "clip", "weights": "torn.safetensors"}, "is no head"),
        ("head", {"model": "clip", "weights": "head.pth"}, "a pickle may run code"),
        ("head", {"model": "clip"}, "empty is no head"),
        ("self_retrieval", {"model": "bert"}, "`bag`: empty, and scorers.self_retrieval needs it"),
        ("verdict", {"column": "judge"}, "`scorers.verdict.a.column`: 'judge' is not among data.columns"),
        ("verdict", {}, "`scorers.verdict.a.column`: empty"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused_at_launch(
    world: Path, folder: Path, tmp_path: Path, kind: str, settings: dict[str, Any], said: str
) -> None:
    places = {"model": world / "clip" if settings.get("model") == "clip" else folder / settings.get("model", "")}
    places["weights"] = folder / settings.get("weights", "")
    given = {key: str(places.get(key, value)) if key in places else value for key, value in settings.items()}
    read = kind in ("similarity", "bert_score", "nli")
    blind = kind in ("head", "verdict") or settings.get("of") in ("image", "audio")
    changes: dict[str, Any] = {"references": ["org"] if read else [], "texts": [] if blind else ["re"]}
    with pytest.raises(UserError, match=said):
        launch.prepare(checked(tree(world, tmp_path, scorers={kind: {"a": given}}, **changes)))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"scorers": {"nli": {"a": {"model": "x"}}}}, "`references`: empty, and a scorer needs it"),
        ({"scorers": {"surface": {}}, "bag": {"rows": 3}}, "`bag`: no scorer looks at bags"),
        ({"scorers": {"self_retrieval": {"a": {"model": "x"}}}, "bag": {"rows": 1}}, "a bag has 2 to 512 images"),
        ({"scorers": {"self_retrieval": {"a": {"model": "x"}}}, "bag": {}}, "write rows or column: one of both"),
        ({"scorers": {"self_retrieval": {"a": {"model": "x"}}}, "bag": {"column": "b"}}, "`bag.column`: 'b' is not"),
        ({"scorers": {"itm": {"a": {"model": "x"}}, "reward": {"a": {"model": "y"}}}}, "two fields would be called"),
    ],
)  # fmt: skip
def test_what_rows_lack_is_told_when_planned(world: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ScoreOperator(checked(tree(world, tmp_path, **changes)).work)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def png(shade: int) -> bytes:
    return encoded(Image.new("RGB", (30, 20), (shade, 99, 9)))


def job(folder: Path, members: list[dict[str, bytes]], **changes: Any) -> dict[str, Any]:
    with (folder / "0.tar").open("wb") as file:
        write_tar(file, ((f"{at:04}", made) for at, made in enumerate(members)))
    columns = {name: {"member": name} for name in sorted({name for made in members for name in made} - {"png"})}
    return tree(folder, folder, data={"shards": [f"{folder}/0.tar"], "columns": columns}, **changes)


def test_empty_texts_and_references_have_no_score(folder: Path, tmp_path: Path) -> None:
    texts = [("a red car", "a red flag"), ("", "a red flag"), ("a red car", ""), (" \n ", "\t"), ("word " * 99, "car")]
    scorers = {"similarity": {"like": {"model": f"{folder}/bert"}}, "bert_score": {"bert": {"model": f"{folder}/bert"}}}
    members = [{"a": a.encode(), "b": b.encode()} for a, b in texts]
    rows = rows_of(published(job(tmp_path, members, texts=["a"], references=["b"], scorers=scorers)))
    assert [row["status"] == OK for row in rows] == [True, False, True, False, True]
    assert {row["reason"] for row in rows} == {"", "text: missing"}
    for field in ("like_a", "bert_a", "recall_bert_a"):
        assert [row[field] is not None for row in rows] == [True, False, False, False, True]
    assert [row["cut_like_a"] for row in rows] == [False, None, False, None, True]


def test_a_model_that_says_nan_gives_no_score(folder: Path, tmp_path: Path) -> None:
    models.classifier(tmp_path / "reward", ["good"])
    weights = load_file(tmp_path / "reward" / "model.safetensors")
    save_file(weights | {"classifier.bias": np.full(1, np.nan, np.float32)}, tmp_path / "reward" / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    given = job(
        tmp_path, [{"a": b"a car"}] * 3, texts=["a"], scorers={"reward": {"r": {"model": f"{tmp_path}/reward"}}}
    )
    rows = rows_of(published(given))
    assert Counter((row["reason"], row["detail"], row["r_a"]) for row in rows) == {(NOT_FINITE, "r_a", None): 3}


def test_bags_of_a_column(world: Path, tmp_path: Path) -> None:
    """Rows that follow one another with one value; unreadable images are in no bag, equal ones are not ahead of
    oneself, a row without a value is alone. A caption that is the same for all finds one image a bag."""
    found = [("x", 10), ("x", 200), ("x", None), ("y", 30), ("", 90), ("", 120), ("z", 50), ("z", 50)]
    members = [
        {"png": b"junk" if shade is None else png(shade), "t": b"a red car", "bag": bag.encode()}
        for bag, shade in found
    ]
    scorers = {"self_retrieval": {"f": {"model": f"{world}/clip"}}}
    given = job(tmp_path, members, texts=["t"], bag={"column": "bag"}, scorers=scorers, batch=3)
    rows = rows_of(published(given))
    assert [row["bag_f"] for row in rows] == [2, 2, None, 1, 1, 1, 2, 2]
    assert sorted(row["rank_f_t"] for row in rows[:2]) == [1, 2]
    assert [row["rank_f_t"] for row in rows[3:]] == [1, 1, 1, 1, 1]
    assert [row["f_t"] for row in rows[3:]] == pytest.approx([0, 0, 0, np.log(0.5), np.log(0.5)], abs=1e-6)
    everyone = [{"png": png(1), "t": b"a", "bag": b"one"}] * 513
    given = job(tmp_path, everyone, texts=["t"], bag={"column": "bag"}, scorers=scorers)
    operator = ScoreOperator(checked(given).work)
    [shard] = operator.plan()
    with pytest.raises(ShardError, match="more than 512 rows that follow one another have 'one'"):
        list(operator.read(shard))


def test_a_sentence_encoder_in_a_folder_of_its_own(folder: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "dense", tmp_path / "deep")
    (tmp_path / "deep" / "modules.json").write_text(
        json.dumps(
            [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
        )
    )
    scorers = {"similarity": {"a": {"model": f"{tmp_path}/deep"}}}
    given = tree(world, tmp_path, texts=["re"], references=["org"], scorers=scorers)
    with pytest.raises(UserError, match=r"keeps its transformer in a folder of its own\. Name that one"):
        ScoreOperator(checked(given).work).identity()


def test_duplicates_by_digest_and_by_looks(tmp_path: Path) -> None:
    """Image facts, the statistics of all rows, a selection: of equal files, and of equal looks, the first is kept."""
    scene = Image.effect_mandelbrot((120, 90), (-2, -1, 1, 1), 40).convert("RGB")
    pictures = [encoded(scene), encoded(scene), encoded(scene, "BMP"), encoded(scene.rotate(90)), encoded(scene)]
    facts = published(
        job(tmp_path, [{"png": data} for data in pictures], name="facts", texts=[], scorers={"facts": {}})
    )
    file = str(tmp_path / "shared.json")
    flags = ["--shared", "image_sha256=1", "--shared", "phash=1"]
    assert inline("recap.select.statistics", str(facts.path), "--out", file, *flags).returncode == 0
    for field, wanted in (("image_sha256", "0000 0002 0003"), ("phash", "0000 0003")):
        rule = {"column": "value", "shared_by": 1, "first": True, "statistics": file}
        tree = selecting(tmp_path, field, columns={"value": ("facts", field)}, rules={"twice": rule})
        rows = rows_of(published(tree))
        assert " ".join(row["key"] for row in rows if row["status"] == OK) == wanted
        assert {row["reason"] for row in rows} == {"", "twice"}


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"version": 1}', '{"version": 1, "made_of": []}', "\x00", '{"version": 2}']
)
def test_what_is_no_statistics_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "edges.json").write_text(content)
    with pytest.raises(UserError, match=r"edges\.json is no statistics file .*Make it: python -m recap"):
        Statistics(str(tmp_path / "edges.json"))
