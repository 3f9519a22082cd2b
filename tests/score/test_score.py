"""Scores equal those of the libraries they are named after, rows without a score say why, bad configs are refused."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from hpc import config as configs
from hpc.base.errors import UserError
from hpc.operator import OK, SKIPPED
from recap.data.inputs import DataConfig, list_shards
from recap.data.remote import open_shard
from recap.data.tars import Sample, read_samples
from recap.engine.decode import Geometry, decode
from recap.engine.decode_pool import Decoded, DecodePool
from recap.score import image_facts
from recap.score.operator import NOT_FINITE, TEXT_MISSING, ScoreOperator
from recap.score.scorer import Picture, ScoreInput
from recap.score.scorers import scorers_of
from recap.worlds.tars import write_tar
from tests.score.conftest import CONTEXT, SAMPLES, SHARDS, tree
from tests.support.published import published, rows_of


def samples(folder: Path) -> dict[str, Sample]:
    found: dict[str, Sample] = {}
    for shard in list_shards(DataConfig(shards=[str(folder)])):
        with open_shard(shard) as file:
            found |= {s.key: s for s in read_samples(file) if isinstance(s, Sample)}
    return found


@torch.no_grad()
def by_transformers(folder: Path, image: bytes, texts: list[str]) -> tuple[list[float], list[float]]:
    """Cosines, and the model's own probabilities."""
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(
        Image.open(io.BytesIO(image)), return_tensors="pt"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    out = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], **pixels)
    return (out.image_embeds @ out.text_embeds.T)[0].tolist(), out.logits_per_image[0].softmax(-1).tolist()


def test_clip_scores_are_transformers_own(world: Path, tmp_path: Path) -> None:
    """Two CLIPs' names, one model: its images are decoded once, for its square and for the facts'."""
    scorers = {
        "clip": {
            "clip": {"model": f"{world}/clip", "share": True},
            "hundred": {"model": f"{world}/clip", "scale": 100},
        },
        "facts": {},
    }
    run = published(tree(world, tmp_path, scorers=scorers))
    rows, known = rows_of(run), samples(world / "tars")
    assert len(rows) == SHARDS * SAMPLES
    for row in rows:
        number = int(row["key"][3:])
        if number % 17 == 3:
            assert (row["status"], row["reason"]) == (SKIPPED, "image: not an image") and row["clip_org"] is None
            continue
        assert row["status"] == OK
        if number % 5:
            continue
        members = known[row["key"]].members
        new = texts_of(world, row["key"])
        cosines, shares = by_transformers(world / "clip", members["png"], [members["txt"].decode(), new])
        assert [row["clip_org"], row["clip_re"]] == pytest.approx(cosines, abs=2e-6)
        assert row["hundred_re"] == pytest.approx(100 * max(cosines[1], 0), abs=2e-4)
        assert [row["share_clip_org"], row["share_clip_re"]] == pytest.approx([100 * s for s in shares], abs=1e-3)
        assert row["share_clip_org"] + row["share_clip_re"] == pytest.approx(100, abs=1e-4)
        assert (row["cut_clip_org"], row["cut_clip_re"]) == (False, True)  # 3 and 8 words in a context of 8
        assert (row["width"], row["height"], row["aspect"]) == (32, 32, 1.0)
        assert row["file_bytes"] == len(members["png"])


def texts_of(world: Path, key: str) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(world / "recap" / f"{key[:3]}.parquet").to_pylist()
    return next(row["caption"] for row in table if row["key"] == key)


def test_surface_and_language(world: Path, tmp_path: Path) -> None:
    texts = {
        "0": "The image, shows 3.5 cats. They sleep on a comfortable sofa.",
        "1": " the IMAGE, shows 3.5 cats.\nThey sleep on a comfortable sofa. ",
        "2": "Ein rotes Auto steht vor dem alten Haus.",
        "3": "",
        "4": "I'm sorry, I cannot help.",
    }
    with (tmp_path / "0.tar").open("wb") as file:
        write_tar(file, ((key, {"txt": text.encode()}) for key, text in texts.items()))
    scorers = {"surface": {"leaks": ["image", "detail"], "readability": True}, "language": {}}
    changes: dict[str, Any] = {
        "data": {"shards": [f"{tmp_path}/0.tar"], "columns": {"alt": {"member": "txt"}}},
        "texts": ["alt"],
    }
    rows = {row["key"]: row for row in rows_of(published(tree(world, tmp_path, scorers=scorers, **changes)))}
    first = rows["0"]
    assert (first["words_alt"], first["sentences_alt"], first["opener_alt"]) == (11, 2, "the image")
    assert (first["leaks_alt"], first["lint_alt"], first["characters_alt"]) == (1, ["lead-in"], len(texts["0"]))
    assert first["digest_alt"] == rows["1"]["digest_alt"] != rows["2"]["digest_alt"]
    assert first["flesch_kincaid_alt"] == pytest.approx(0.39 * 11 / 2 + 11.8 * 16 / 11 - 15.59, abs=1e-4)
    assert rows["4"]["lint_alt"] == ["refusal"]
    assert (rows["3"]["status"], rows["3"]["reason"]) == (SKIPPED, TEXT_MISSING)
    assert [rows[key]["language_alt"] for key in "024"] == ["en", "de", "en"]
    assert all(0.5 < rows[key]["language_sure_alt"] <= 1 for key in "02")


def test_several_squares_of_one_decoding() -> None:
    """In a process of the pool: each square is what decoding for it alone gives."""
    image = Image.linear_gradient("L").resize((90, 40)).convert("RGB")
    out = io.BytesIO()
    image.save(out, "PNG")
    squares = [Geometry(24), Geometry(40, "pad"), image_facts.SQUARE]
    pool = DecodePool(squares[0], 2, 1, 10_000_000, False, 60.0, beside=squares[1:])
    try:
        pool.put(7, out.getvalue())
        found: list[Decoded] = []
        while not found:
            found = pool.poll(0.1)
        assert not found[0].reason
        for square, view in zip(squares, pool.rings.views, strict=True):
            np.testing.assert_array_equal(view[found[0].place], decode(out.getvalue(), square))
    finally:
        pool.close()


def picture(image: Image.Image, form: str = "PNG", **options: Any) -> Picture:
    out = io.BytesIO()
    image.save(out, form, **options)
    return Picture(out.getvalue(), {image_facts.SQUARE: decode(out.getvalue(), image_facts.SQUARE)})


def test_image_facts() -> None:
    product = Image.new("RGB", (300, 200), "white")
    product.paste((200, 30, 30), (30, 20, 120, 150))
    scene = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 60).convert("RGB")
    jpeg: dict[str, Any] = {"form": "JPEG", "quality": 60}
    facts = [
        image_facts.facts(picture(one, **how))
        for one, how in [
            (product, {}), (product.rotate(90, expand=True), {}), (scene, {}), (scene.resize((150, 100)), {}),
            (scene, jpeg),
        ]
    ]  # fmt: skip
    assert (facts[0]["width"], facts[0]["height"], facts[0]["aspect"]) == (300, 200, 1.5)
    assert facts[1]["aspect"] == 1.5
    assert facts[0]["uniform"] == 1.0 > facts[2]["uniform"] > 0

    def differ(a: int, b: int) -> int:
        return bin((facts[a]["phash"] ^ facts[b]["phash"]) & (1 << 64) - 1).count("1")

    assert max(differ(2, 3), differ(2, 4)) <= 6 < min(differ(0, 1), differ(0, 2))


class Broken:
    """A scorer whose second field is not a number."""

    needs = frozenset({"texts"})
    geometries: list[Any] = []

    def __init__(self, fields: list[Any]) -> None:
        self.fields = fields

    def score(self, rows: list[ScoreInput]) -> list[dict[str, Any]]:
        return [{"words_org": 3, "flesch_kincaid_org": math.nan} for _ in rows]

    def setup(self, device: str) -> None: ...

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> str:
        return ""


def test_what_is_not_a_number_is_no_score(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tree(world, tmp_path, scorers={"surface": {"readability": True}})
    work = configs.check({"cluster": {"kind": "local"}, **given}, "test").work
    fields = scorers_of(work)[0].fields
    monkeypatch.setattr("recap.score.operator.scorers_of", lambda config: [Broken(fields)])
    rows = rows_of(published(given))
    assert {(row["status"], row["reason"], row["detail"]) for row in rows} == {
        (SKIPPED, NOT_FINITE, "flesch_kincaid_org")
    }
    assert {(row["words_org"], row["flesch_kincaid_org"]) for row in rows} == {(3, None)}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"scorers": {}}, "`scorers`: there are none"),
        ({"scorers": {"surface": {}}, "texts": []}, "`texts`: empty, and a scorer needs it"),
        ({"scorers": {"surface": {}}, "texts": ["alt"]}, r"'alt' is not among data.columns \(org, re\)"),
        ({"scorers": {"facts": {}}}, "`texts`: org: no scorer looks at texts"),
        ({"scorers": {"surface": {}}, "references": ["re"]}, "no scorer looks at references"),
        ({"scorers": {"clip": {"a": {"model": "none", "references": True}}}}, "`references`: empty"),
        ({"scorers": {"clip": {"a": {"model": "none", "share": True}}}, "texts": ["org"]}, "a share is among two"),
        ({"scorers": {"clip": {"a": {"model": "none", "scale": 0}}}}, "`scorers.clip.a.scale`: 0.0 is no scale"),
        ({"scorers": {"clip": {"words": {"model": "x"}}, "surface": {}}}, "two fields would be called 'words_org'"),
        ({"scorers": {"language": {"model": "/none"}}}, "scorers.language.model=FILE"),
        ({"scorers": {"nudity": {"model": "/none"}}, "texts": []}, "no /none is here. pip install 'recap-hpc"),
    ],
)  # fmt: skip
def test_wrong_configs_are_refused_when_planned(
    world: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        ScoreOperator(configs.check({"cluster": {"kind": "local"}, **tree(world, tmp_path, **changes)}, "test").work)


def test_a_folder_without_weights_is_no_clip(world: Path, tmp_path: Path) -> None:
    given = tree(world, tmp_path, scorers={"clip": {"clip": {"model": str(tmp_path)}}})
    operator = ScoreOperator(configs.check({"cluster": {"kind": "local"}, **given}, "test").work)
    with pytest.raises(UserError, match=r"`scorers.clip.clip.model`: .* is no model: a folder with \*.safetensors"):
        operator.identity()
