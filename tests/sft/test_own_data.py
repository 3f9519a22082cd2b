"""One's own data: tars with captions or with a column, conversations in JSON; the shipped examples, on ten pictures."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.random_captioner import photo
from hpc import config as configs
from hpc.base.errors import UserError
from recap.sft.dialogues import check
from recap.sft.source import Source
from recap.sft.task import SftTask
from tests.sft.conftest import Make, tree
from tests.train.ranks import curve, launch, log

COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 160, 20)}


def flat(colour: str, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), COLOURS[colour]).save(file, format)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def samples(task: SftTask, count: int) -> dict[str, tuple[str, Any]]:
    """key -> (answer, the picture's colour) of the first samples of the stream."""
    found = {}
    for position in range(count):
        ready = task.ready(position)
        (handle,) = ready.example.images
        pixel = ready.source.image(handle).getpixel((3, 3))
        found[ready.example.key] = (ready.example.turns[-1][1], pixel)
    return found


def near(pixel: Any, colour: str) -> bool:
    return all(abs(a - b) < 12 for a, b in zip(pixel, COLOURS[colour], strict=True))


def test_the_same_keys_in_two_tars_are_two_samples(task: Make, tmp_path: Path) -> None:
    """Keys repeat in tars, have folders in them, and more than one image file: a sample is its shard and its key."""
    jpg = flat("green", "JPEG")
    write_tar(tmp_path / "t/a.tar", {"000.png": flat("red"), "000.txt": b"a red", "k.jpg": jpg, "k.png": flat("blue"),
                                     "k.txt": b"a green"})  # fmt: skip
    write_tar(tmp_path / "t/b.tar", {"000.png": flat("blue"), "000.txt": b"a blue", "cats/000.png": flat("green"),
                                     "cats/000.txt": b"a green"})  # fmt: skip
    made = task(data=[{"kind": "columns", "path": str(tmp_path / "t/*.tar")}], template="short")
    assert made.size() == 4
    for _ in range(2):  # the second epoch holds the same
        found = samples(made, 4)
        assert {key: text for key, (text, _) in found.items()} == {
            "a/000": "a red", "a/k": "a green", "b/000": "a blue", "b/cats/000": "a green"
        }  # fmt: skip
        assert all(near(pixel, text.split()[1]) for text, pixel in found.values())


@pytest.mark.parametrize("where", ["column", "json"])
def test_captions_beside_or_in_the_tars(task: Make, tmp_path: Path, where: str) -> None:
    """A column joins by shard and key, and what is not ok in it is no sample; a json member is read by its key."""
    names = {"a": ["red", "blue"], "b": ["green", "red"]}
    for shard, colours in names.items():
        members = {}
        for n, colour in enumerate(colours):
            members[f"{n:03d}.png"] = flat(colour)
            members[f"{n:03d}.json"] = json.dumps({"said": f"a {colour}"}).encode()
        write_tar(tmp_path / f"t/{shard}.tar", members)
        rows = [{"key": f"{n:03d}", "said": f"a {colour}", "status": "ok"} for n, colour in enumerate(colours)]
        rows[0]["status"] = "skipped" if shard == "b" else "ok"
        (tmp_path / "column").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"column/{shard}.parquet")
    source = {"kind": "columns", "path": str(tmp_path / "t/*.tar"), "field": "said"}
    source |= {"column": str(tmp_path / "column")} if where == "column" else {"member": "json"}
    made = task(data=[source], template="short")
    found = samples(made, 4)
    wanted = {"a/000", "a/001", "b/001"} | ({"b/000"} if where == "json" else set())
    assert found.keys() == wanted and all(near(pixel, text.split()[1]) for text, pixel in found.values())
    counts = [made.batch(0, 4, rank, 2).counts["without a caption"] for rank in range(2)]
    assert (sum(counts) > 0) is (where == "column")


def test_tars_and_conversations_share_an_epoch(task: Make, conversations: Path, tmp_path: Path) -> None:
    """Each sample once, `repeat` times where it says so, the tars' among the others at regular distances."""
    for shard in "ab":
        pairs = [((f"{n}.png", flat("red")), (f"{n}.txt", f"a caption {n}".encode())) for n in range(9)]
        write_tar(tmp_path / f"t/{shard}.tar", dict(member for pair in pairs for member in pair))
    plain = {"kind": "llava", "path": str(conversations / "data.json"), "images": str(conversations / "images")}
    tars = {"kind": "columns", "path": str(tmp_path / "t/*.tar")}
    made = task(data=[plain, tars | {"repeat": 2}], template="short")
    assert made.size() == 24 + 36
    keys = [made.ready(position).example.key for position in range(120)]
    for first in (0, 60):
        epoch = keys[first : first + 60]
        assert {epoch.count(key) for key in epoch if "/" in key} == {2} and len(set(epoch)) == 24 + 18
        assert sum("/" in key for key in epoch[:10]) == 6
    assert keys[:60] != keys[60:] and keys == [made.ready(position).example.key for position in range(120)]
    parts = [made.batch(8, 8, rank, 2) for rank in range(2)]
    assert sum(part.weight for part in parts) == made.batch(8, 8, 0, 1).weight
    few = task(data=[tars | {"samples": 5}], template="short")
    assert len({few.ready(position).example.key for position in range(20)}) == few.size() == 5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"path": "nothing/*.tar"}, "nothing"),
        ({"path": "t.tar.gz"}, "gzipped"),
        ({"column": "column"}, "lacks 1 of 1 shards"),
        ({"field": "no"}, "has no field 'no'"),
    ],
)
def test_what_cannot_be_read_is_said_at_launch(task: Make, tmp_path: Path, change: dict[str, str], word: str) -> None:
    write_tar(tmp_path / "t.tar", {"0.png": flat("red"), "0.txt": b"a red"})
    (tmp_path / "t.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "column").mkdir()
    (tmp_path / "whole").mkdir()
    rows = [{"key": "0", "caption": "a red", "status": "ok"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole/t.parquet")
    source = {"kind": "columns", "path": str(tmp_path / "t.tar")}
    source |= {key: str(tmp_path / value) if key != "field" else value for key, value in change.items()}
    source |= {"column": str(tmp_path / "whole")} if "field" in change else {}
    config = configs.check(tree(Path("x"), tmp_path, data=[source], model="recap/demo/captioner"), "test")
    with pytest.raises(UserError, match=word):
        config.trainer().check(1)
        task(data=[source]).ready(0)


ROW = {"id": "r", "image": "0.png"}
ASKED, SAID = "What is it?", "a red one"
URL = "data:image/png;base64," + base64.b64encode(flat("red")).decode()
FORMS: dict[str, dict[str, Any]] = {
    "llava": ROW | {"conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": SAID}]},
    "no mark": ROW | {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
    "messages": {"id": "r", "images": ["0.png"], "messages": [{"role": "user", "content": ASKED},
                                                             {"role": "assistant", "content": SAID}]},
    "parts": {"id": "r", "images": [{"path": "0.png"}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": ASKED}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": SAID}]}]},
    "own path": {"id": "r", "messages": [
        {"role": "user", "content": [{"type": "image", "path": "0.png"}, {"type": "text", "text": ASKED}]},
        {"role": "assistant", "content": SAID}]},
    "data url": {"id": "r", "messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}},
                                     {"type": "text", "text": ASKED}]},
        {"role": "assistant", "content": SAID}]},
    "upper case, other roles": ROW | {"conversations": [{"from": "Human", "value": ASKED},
                                                        {"from": "bing", "value": SAID}]},
    "turns of one kind under the key of the other": ROW | {"messages": [{"from": "user", "value": ASKED},
                                                                        {"from": "assistant", "value": SAID}]},
    "ollama": {"id": "r", "messages": [{"role": "user", "content": ASKED, "images": [URL.partition(",")[2]]},
                                       {"role": "assistant", "content": SAID}]},
    "responses": {"id": "r", "messages": [
        {"role": "user", "content": [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": ASKED}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": SAID}]}]},
    "anthropic": {"id": "r", "messages": [
        {"role": "user", "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": URL.partition(",")[2]}},
            {"type": "text", "text": ASKED}]},
        {"role": "assistant", "content": SAID}]},
    "parts without types": {"id": "r", "messages": [{"role": "user", "content": [{"image": "0.png"}, {"text": ASKED}]},
                                                    {"role": "assistant", "content": [{"text": SAID}]}]},
    "parts by number": {"id": "r", "images": ["0.png"], "messages": [
        {"role": "user", "content": [{"index": None, "text": ASKED, "type": "text"},
                                     {"index": 0, "text": None, "type": "image"}]},
        {"role": "assistant", "content": SAID}]},
    "a part and its mark": {"id": "r", "images": ["0.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"<image>\n{ASKED}"}]},
        {"role": "assistant", "content": SAID}]},
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_a_conversation_is_the_same(task: Make, tmp_path: Path, form: str) -> None:
    (tmp_path / "0.png").write_bytes(flat("red"))
    (tmp_path / "mine.json").write_text(json.dumps([FORMS[form]]))
    kind = "messages" if "messages" in FORMS[form] else "sharegpt"
    source = {"kind": kind, "path": str(tmp_path / "mine.json"), "images": str(tmp_path)}
    made = task(data=[source], template="vicuna")
    ready = made.ready(0)
    (handle,) = ready.example.images
    assert near(ready.source.image(handle).getpixel((3, 3)), "red")
    text = made.processor.tokenizer.decode(ready.rendered.ids).replace("<image>", "")
    assert text.endswith(f"USER: \n{ASKED} ASSISTANT: {SAID}</s>") and ready.rendered.images == 1


def test_a_conversations_own_system_text(task: Make, tmp_path: Path) -> None:
    """Stands where the template's own would, in training and in the export's chat template; where there is no place for
    it, the sample is rejected by name."""
    talk = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]
    (tmp_path / "mine.jsonl").write_text(json.dumps({"id": "r", "conversations": talk}))
    source = {"kind": "sharegpt", "path": str(tmp_path / "mine.jsonl")}
    made = task(data=[source], template="vicuna")
    ready = made.ready(0)
    text = made.processor.tokenizer.decode(ready.rendered.ids)
    assert text == f"<s>Be brief. USER: {ASKED} ASSISTANT: {SAID}</s>"
    made.processor.chat_template = made.renderer.chat_template()
    asked = [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": ASKED}]
    prompt = made.processor.apply_chat_template(asked, add_generation_prompt=True)
    assert text.startswith(prompt) and prompt.endswith("ASSISTANT:")
    batch = task(data=[source], template="short").batch(0, 1, 0, 1)
    assert batch.rejected == [("r", "template: has no place for a system text (r: Be brief.)")]


SPOKEN = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]


def test_a_system_text_beside_the_turns(task: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps([{"system": "Be brief.", "messages": SPOKEN}]).encode()
    )
    made = task(data=[{"kind": "messages", "path": str(tmp_path / "mine.json")}], template="vicuna")
    assert made.processor.tokenizer.decode(made.ready(0).rendered.ids).startswith("<s>Be brief. USER:")


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"instruction": ASKED, "output": SAID}, "not messages' format (0: no 'messages')"),
        ({"image": "gone.png", "messages": SPOKEN}, "image: missing (gone.png"),
        ({"image": "https://x.org/0.png", "messages": SPOKEN}, "a URL, which is never fetched"),
        ({"videos": ["0.mp4"], "messages": SPOKEN}, "holds what is not read (0: videos)"),
        ({"messages": [SPOKEN[0], SPOKEN[1] | {"weight": 0}]}, "an answer of weight 0"),
        ({"messages": SPOKEN[:1]}, "ends without an answer"),
        ({"messages": [*SPOKEN, {"role": "tool", "content": "{}"}]}, "a turn of an unknown role (0: tool)"),
    ],
)
def test_a_file_of_other_things_is_refused_at_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], word: str
) -> None:
    """By name, from its first rows, of which one that is good is enough; whole or from a file's beginning."""
    path = tmp_path / "mine.json"
    source = Source(kind="messages", path=str(path), images=str(tmp_path))
    for head in (1 << 20, 2000):
        monkeypatch.setattr("recap.sft.dialogues._HEAD", head)
        path.write_text(json.dumps([row] * 40))
        with pytest.raises(UserError) as refused:
            check("data[0]", source)
        assert word in str(refused.value) and "none of the first " in str(refused.value)
        path.write_text(json.dumps([row, {"messages": SPOKEN}, *[row] * 40]))
        check("data[0]", source)


@pytest.mark.slow(ci=True)
@pytest.mark.parametrize("name", ["own_tars", "own_conversations"])
def test_the_shipped_examples_on_ten_pictures(tmp_path: Path, name: str) -> None:
    """As they are, but for the paths that a user names."""
    (tmp_path / "images").mkdir()
    pictures = {f"{n}": photo(n) for n in range(10)}
    if name == "own_tars":
        write_tar(tmp_path / "mine.tar", {f"{key}.{end}": data for key, picture in pictures.items() for end, data in
                                          (("jpg", picture), ("txt", f"picture {key}".encode()))})  # fmt: skip
        data = f"{{kind: columns, path: {tmp_path}/*.tar}}"
    else:
        for key, picture in pictures.items():
            (tmp_path / "images" / f"{key}.jpg").write_bytes(picture)
        rows = [{"images": [f"{key}.jpg"], "messages": [{"role": "user", "content": ASKED},
                 {"role": "assistant", "content": f"picture {key}"}]} for key in pictures]  # fmt: skip
        (tmp_path / "mine.json").write_text(json.dumps(rows))
        data = f"{{kind: messages, path: {tmp_path}/mine.json, images: {tmp_path}/images}}"
    changes = [f"data=[{data}]", f"runs={tmp_path}", "train.batch=5", "train.log_every=0"]
    config = configs.load(Path(f"configs/sft/{name}.yaml"), changes)
    config.trainer().check(1)
    codes = launch(tmp_path / "run", 1, config.resolved, module="tests.sft.ranks")
    assert codes == [0], log(tmp_path / "run")[-2000:]
    assert [step for step, _ in curve(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run/exports/final/model.safetensors").exists()
