"""Readers: folders, tars and zips, our own columns, worlds; and what is wrong with them, by name and count."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hpc.base.errors import UserError
from recap.demo import FLAGS
from recap.sft.inspect import report
from recap.sft.source import Source
from recap.sft.sources import Listed
from recap.sft.task import SftTask
from recap.sft.templates import BadSample
from tests.sft.conftest import Make


def keys_of(task: SftTask, count: int) -> list[str]:
    return [task.ready(position).example.key for position in range(count)]


@pytest.mark.parametrize("archive", ["tar", "zip"])
def test_images_in_archives(task: Make, conversations: Path, archive: str) -> None:
    """The same tensors, wherever the images lie: here in two archives, made by `tar cf x.tar ./` and `zip`."""
    files = sorted((conversations / "images").iterdir())
    for number, part in enumerate((files[:12], files[12:])):
        path = conversations / f"images{number}.{archive}"
        if archive == "tar":
            with tarfile.open(path, "w") as tar:
                for file in part:
                    tar.add(file, f"./{file.name}")
        else:
            with zipfile.ZipFile(path, "w") as zipped:
                for file in part:
                    zipped.write(file, file.name)
    source = {"kind": "llava", "path": str(conversations / "data.json")}
    packed = task(data=[source | {"images": str(conversations / f"images*.{archive}")}])
    loose = task()
    one, two = packed.batch(0, 24, 0, 1), loose.batch(0, 24, 0, 1)
    assert not one.rejected
    assert all((a["pixel_values"] == b["pixel_values"]).all() for a, b in zip(one.micro, two.micro, strict=True))


@pytest.mark.parametrize("name", ["images.tar.gz", "images.tar", "images.zip"])
def test_archives_that_cannot_be_read(conversations: Path, name: str) -> None:
    """A compressed tar has no offsets to read at; the others are no archives at all."""
    path = conversations / name
    if name.endswith(".gz"):
        with tarfile.open(path, "w:gz") as tar:
            tar.add(conversations / "images" / "000.jpg", "000.jpg")
    else:
        path.write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match=rf"{name} is neither a zip nor an uncompressed tar"):
        Listed([Source(path=str(conversations / "data.json"), images=str(path))], seed=0)


def test_a_damaged_zip_member_is_rejected_by_name(task: Make, conversations: Path) -> None:
    path = conversations / "images.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for file in sorted((conversations / "images").iterdir()):
            zipped.write(file, file.name)
        at = zipped.getinfo("007.jpg").header_offset
    content = bytearray(path.read_bytes())
    content[at + 200] ^= 255
    path.write_bytes(content)
    made = task(data=[{"kind": "llava", "path": str(conversations / "data.json"), "images": str(path)}])
    [(key, reason)] = made.batch(0, 24, 0, 1).rejected
    assert key == "row-7" and reason.startswith("image: damaged (007.jpg: Bad CRC-32")


def test_json_lines_and_repeat(conversations: Path) -> None:
    rows = json.loads((conversations / "data.json").read_text())
    (conversations / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    images = str(conversations / "images")
    sources = [
        Source(path=str(conversations / "data.jsonl"), images=images, samples=3, repeat=2),
        Source(path=str(conversations / "data.json"), images=images),
    ]
    corpus = Listed(sources, seed=0)
    assert len(corpus) == 30
    keys = []
    for index in range(30):
        source, number = corpus.find(index)
        keys.append(source.example(number, 0).key)
    assert keys[:6] == ["row-0", "row-1", "row-2"] * 2 and keys[6:8] == ["row-0", "row-1"]


def test_a_caption_column_trains_the_next_captioner(task: Make) -> None:
    """The shipped flags and their human descriptions: a column of ours."""
    column = str(FLAGS.parent / "flags_columns/description")
    source = {"kind": "columns", "path": str(FLAGS / "*.tar"), "column": column}
    made = task(data=[source | {"field": "text", "prompts": ["one?", "two?"]}], template="short")
    assert made.size() > 200
    asked = {made.ready(position).example.turns[0][1] for position in range(40)}
    assert asked == {"<image>\none?", "<image>\ntwo?"}
    assert made.batch(0, 8, 0, 1).weight > 0


def test_worlds(task: Make) -> None:
    for world in ("recap.worlds.flags.sample", "recap.worlds.shapes.sample"):
        made = task(data=[{"kind": "world", "path": world, "samples": 100}], template="short")
        assert made.size() == 100 and made.batch(0, 8, 0, 1).weight > 20


def test_missing_and_damaged_images_are_rejected_by_name(task: Make, conversations: Path) -> None:
    (conversations / "images" / "003.jpg").unlink()
    (conversations / "images" / "004.jpg").write_bytes(b"\xff\xd8\xff no picture")
    made = task(pack=256, rows=2)
    batch = made.batch(0, 24, 0, 1)
    assert sorted(batch.rejected) == [
        ("row-3", "image: missing (003.jpg: FileNotFoundError)"),
        ("row-4", next(reason for key, reason in batch.rejected if key == "row-4")),
    ]
    assert dict(batch.rejected)["row-4"].startswith("image: damaged (004.jpg")
    good = [ready for ready in map(made.ready, range(24)) if ready.example.key not in ("row-3", "row-4")]
    assert batch.weight == sum(sum(ready.rendered.learned) for ready in good)
    parts = [made.batch(0, 24, rank, 2) for rank in range(2)]
    assert sorted(r for part in parts for r in part.rejected) == sorted(batch.rejected)


def spoil(folder: Path, changes: dict[str, Any]) -> None:
    """Change one row of data.json."""
    rows = json.loads((folder / "data.json").read_text())
    rows[7] |= changes
    (folder / "data.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"conversations": [{"from": "human", "value": "<image> hello"}]}, "conversation: ends without an answer"),
        ({"image": ["007.jpg", "008.jpg"]}, "image tokens: not as many as images"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "conversation: a turn of an unknown role"),
        ({"conversations": [{"from": "human", "value": None}]}, "conversation: not LLaVA's format"),
        ({"image": 7}, "conversation: not LLaVA's format"),
    ],
)
def test_bad_rows_are_rejected_by_name(task: Make, conversations: Path, changes: dict[str, Any], reason: str) -> None:
    spoil(conversations, changes)
    made = task()
    batch = made.batch(0, 24, 0, 1)
    assert [key for key, _ in batch.rejected] == ["row-7"] and batch.rejected[0][1].startswith(reason)
    assert "row-7" not in batch.keys
    with pytest.raises(BadSample, match=reason):
        for position in range(24):
            made.ready(position)


def test_inspect(task: Make, conversations: Path) -> None:
    spoil(conversations, {"conversations": [{"from": "human", "value": "<image> hello"}]})
    out = io.StringIO()
    code = report(task(pack=512), 3, 24, Console(file=out, width=100, highlight=False))
    said = out.getvalue()
    assert code == 1
    assert "▶ a picture" in said and "</s>◀" in said and "<image> × 16" in said
    assert "23 of 24 samples can be used" in said and "rejected: 1 × conversation: ends without an answer" in said
    assert "rows of 512 tokens are filled to" in said
    assert "more than train.max_rejected=0.01 of all allows: a training stops" in " ".join(said.split())


def test_inspect_counts_each_sample_once(task: Make) -> None:
    out = io.StringIO()
    assert report(task(), 1, 1000, Console(file=out, width=100, highlight=False)) == 0
    assert "24 of 24 samples can be used" in out.getvalue()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": "/nowhere"}, "neither a folder nor"),
        ({"template": "vicuña"}, "template"),
        ({"trainable": []}, "nothing would be trained"),
        ({"trainable": ["("]}, "no regular expression"),
        ({"rates": {"lm_head": 0.0}}, "rates"),
        ({"pack": 10}, "less than max_tokens"),
        ({"data": []}, "no source"),
        ({"data": [{"kind": "llava", "path": "nowhere.json"}]}, "nowhere.json does not exist"),
        ({"data": [{"kind": "parquet", "path": "x"}]}, "unknown"),
        ({"data": [{"kind": "world", "path": "recap.worlds.flags.sample"}]}, "how many samples"),
        ({"data": [{"kind": "world", "path": "recap.worlds.nothing", "samples": 3}]}, "does not import"),
        ({"train": {"lr": -1.0}}, "train.lr"),
    ],
)
def test_bad_configs(task: Make, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        task(**changes)
