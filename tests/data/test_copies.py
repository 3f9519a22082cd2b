"""Copies of an image, and placeholders, are captioned once or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hpc.operator import Item, Row
from recap.caption.operator import CaptionConfig, CaptionOperator
from recap.data.block_items import IndexedDataConfig
from recap.engine import CaptionerConfig
from recap.generate.engine_job import RowInput
from recap.worlds.tars import write_tar
from tests.data.test_inputs import CAPTIONER
from tests.support.instant import InstantEngine, InstantOperator


def operate(members: list[tuple[str, bytes]], tmp_path: Path, **settings: Any) -> tuple[dict[str, Row], InstantEngine]:
    """The rows of one shard by key, and the engine that captioned it."""
    with open(tmp_path / "0.tar", "wb") as file:
        write_tar(file, [(name.partition(".")[0], {name.partition(".")[2]: data}) for name, data in members])
    data = {k: v for k, v in settings.items() if k in ("placeholders",)}
    captioner = CaptionerConfig(model="instant", **{k: v for k, v in settings.items() if k not in data})
    inputs = IndexedDataConfig(shards=[f"{tmp_path}/0.tar"], **data)
    operator = InstantOperator(CaptionConfig(data=inputs, captioner=captioner))
    operator.setup("cpu")
    rows: list[Row] = []
    for item in operator.read(operator.plan()[0]):
        assert isinstance(item, Item)
        operator.put(item)
        if item.index % 3 == 2:
            rows += operator.poll(0)
    rows += operator.poll(0) + operator.poll(0)
    engine = operator._engine
    assert isinstance(engine, InstantEngine)
    assert sorted(r.index for r in rows) == list(range(len(rows)))
    return {row.key: row for row in rows}, engine


COPIES = [(f"{i}.jpg", b"same" if i in (0, 1, 5) else str(i).encode()) for i in range(8)]


def test_copies_of_an_image_are_captioned_once(tmp_path: Path) -> None:
    rows, engine = operate(COPIES, tmp_path)
    assert len(engine.seen) == 6
    assert rows["0"].values["caption"] == rows["1"].values["caption"] == rows["5"].values["caption"]
    assert rows["0"].values["sha256"] == rows["5"].values["sha256"]
    assert {r.status for r in rows.values()} == {"ok"}


def test_copies_are_captioned_apart_where_captions_depend_on_more(tmp_path: Path) -> None:
    texts = [member for name, data in COPIES for member in ((name, data), (name.replace("jpg", "txt"), b"alt" + data))]
    texts[1] = ("0.txt", b"another text")
    _, plain = operate(texts, tmp_path)
    assert len(plain.seen) == 6
    _, conditioned = operate(texts, tmp_path, prompt="It says {alt}.")
    assert len(conditioned.seen) == 7
    _, sampled = operate(texts, tmp_path, decoding="sample")
    assert len(sampled.seen) == 8


def test_placeholders_are_skipped(tmp_path: Path) -> None:
    dead = hashlib.sha256(b"same").hexdigest()
    rows, engine = operate(COPIES, tmp_path, placeholders=[dead])
    assert {k for k, r in rows.items() if (r.status, r.reason) == ("skipped", "image: placeholder")} == {"0", "1", "5"}
    assert len(engine.seen) == 5
    plain = CaptionOperator(CaptionConfig(captioner=CaptionerConfig(model=CAPTIONER)))
    listed = CaptionOperator(
        CaptionConfig(data=IndexedDataConfig(placeholders=[dead.upper()]), captioner=CaptionerConfig(model=CAPTIONER))
    )
    assert plain.identity() != listed.identity()


def test_copies_of_a_refused_image_are_refused(tmp_path: Path) -> None:
    operator = InstantOperator(CaptionConfig(captioner=CaptionerConfig(model="instant")))
    operator.setup("cpu")
    items = [Item("s", i, str(i), RowInput(b"x", "a" * 64, None)) for i in range(2)]
    assert operator.refuse(items[0], "quarantined", "engine: killed the worker twice").status == "quarantined"
    operator.put(items[1])
    assert [r.status for r in operator.poll(0)] == ["quarantined"]
