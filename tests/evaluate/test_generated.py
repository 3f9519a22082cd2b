"""The whole evaluation of a run of a map job, tars and folders: its figures are those of its parts."""

from __future__ import annotations

import json
import shutil
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit
from recap.evaluate import generated
from recap.evaluate.clip_score import ClipScores, open_clip
from recap.evaluate.fid import ClipFeatures, FrechetDistance, reference_statistics
from recap.evaluate.image_sets import METADATA, ImageItem, open_images
from recap.worlds.tars import write_tar
from tests.evaluate.conftest import World, items
from tests.evaluate.test_judge import Server, server  # noqa: F401 - a fixture


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = generated.main([str(a) for a in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def measured(world: World, made: list[ImageItem]) -> dict[str, float]:
    """The figures, from their parts and in one piece."""
    ours, theirs = open_clip(world.ours), open_clip(world.theirs)
    distance = FrechetDistance(reference_statistics(ClipFeatures(ours), open_images(str(world.real)), 32, "real", 99))
    distance.add(ClipFeatures(ours)(made))
    found = {"distance": distance.value(), "n": len(made)}
    for name, clip in (("clip", theirs), ("long_clip", ours)):
        scores = ClipScores(clip)
        pictures, names = [lambda i=i: i.data for i in made], [i.name for i in made]
        scores.add(clip.encoder.images(pictures, names), [i.prompt or "" for i in made])
        found |= {name: scores.mean.value, f"{name} cut": scores.cut_share}
    return found


def figures(scores: dict[str, Any]) -> dict[str, float]:
    found = {"distance": scores["distance"], "n": scores["n"]}
    for name in ("clip", "long_clip"):
        found |= {name: scores[name]["value"], f"{name} cut": scores[name]["cut"]}
    return found


def test_a_run_and_tars_as_one_table(world: World, server: Server, tmp_path: Path, capsys) -> None:  # noqa: F811
    cache = tmp_path / "cache"
    arguments = [
        "--raw", f"p0={world.raw}", "--recap", f"p0={world.recap}", "--features", f"clip:{world.ours}",
        "--reference", world.real, "--clip", world.theirs, "--long-clip", world.ours, "--batch", "7",
        "--judge", server.url, "--judge-model", "judge-1", "--judge-images", "9", "--judge-cache", cache,
    ]  # fmt: skip
    code, told, errors = run(capsys, *arguments, "--json", "--out", tmp_path / "new/table.md")
    assert code == Exit.COMPLETE, errors
    report = json.loads(told)
    by_row = {(r["arm"], r["guidance"]): r for r in report["rows"]}
    assert list(by_row) == [("p0", 2.0), ("p0", 60.0)] and report["distance"] == "FD(ours)"
    for guidance in (2.0, 60.0):
        made = [i for i in open_images(str(world.raw)) if i.guidance == guidance]
        assert len(made) in (38, 40)
        assert figures(by_row["p0", guidance]["raw"]) == pytest.approx(measured(world, made), rel=1e-4)
    recap = by_row["p0", 2.0]["recap"]
    assert figures(recap) == pytest.approx(measured(world, list(open_images(str(world.recap)))), rel=1e-4)
    assert (recap["clip"]["cut"], recap["long_clip"]["cut"]) == (1.0, 0.0)
    counts = {g: [by_row["p0", g]["raw"][name] for name in ("n", "skipped", "damaged")] for g in (2.0, 60.0)}
    assert counts == {2.0: [40, 0, 0], 60.0: [38, 2, 0]}
    cut = {g: by_row["p0", g]["raw"]["cut by the model"] for g in (2.0, 60.0)}
    assert cut == {2.0: 0.5, 60.0: 18 / 38} and "cut by the model" not in recap
    assert report["left_out"] == {"p0, raw prompts": {"sampler: not finite": 2}}
    judged = recap["judge"]
    assert (judged["n"], judged["asked"], sum(judged["counts"].values())) == (9, 9, 9) and len(server.bodies) == 27
    assert judged["low"] < judged["value"] < judged["high"]

    table = (tmp_path / "new/table.md").read_text()
    head = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert head == [
        "arm", "guidance", "raw n", "raw FD(ours) ↓", "raw CLIP ↑", "recap n", "recap FD(ours) ↓", "recap CLIP ↑",
        "recap long CLIP ↑", "recap judge ↑", "raw long CLIP ↑", "raw judge ↑",
    ]  # fmt: skip
    notes = [
        "not FID", "reads 10 tokens", "reads 64 tokens", "100% cut", "differ in size", "2 (sampler: not finite)",
        "guidance 60: its text encoder cut 47%", "| 38, 2 skipped |",
    ]  # fmt: skip
    assert [note for note in notes if note not in table] == []
    again = run(capsys, *arguments)
    assert again[1] == table and len(server.bodies) == 27  # the judge was asked nothing again


def test_folders_saved_references_and_unanswered(world: World, server: Server, tmp_path: Path, capsys) -> None:  # noqa: F811
    reference = tmp_path / "reference.safetensors"
    features = ("--features", f"clip:{world.ours}")
    saving = ("--reference", world.real, "--save-reference", reference)
    assert run(capsys, *saving, *features)[0] == Exit.USAGE  # no side
    assert run(capsys, *saving, *features, "--side", 32)[0] == Exit.COMPLETE
    folder = tmp_path / "theirs"
    folder.mkdir()
    made = list(open_images(str(world.recap)))
    names = [f"{i:03d}.png" for i in range(len(made))]
    for name, item in zip(names, made, strict=True):
        (folder / name).write_bytes(item.data)
    lines = [json.dumps({"file_name": name, "text": item.prompt}) for name, item in zip(names, made, strict=True)]
    (folder / METADATA).write_text("\n".join(lines))
    server.plan = {str(made[0].prompt): [(400, "no", {})]}
    arguments = (
        "--recap", folder, *features, "--reference", reference, "--judge", server.url, "--judge-model", "j",
        "--judge-cache", tmp_path / "cache", "--json",
    )  # fmt: skip
    code, told, errors = run(capsys, *arguments)
    (row,) = json.loads(told)["rows"]
    assert code == Exit.INCOMPLETE and "no answer" in errors
    assert row["arm"] == "theirs" and row["recap"]["distance"] == pytest.approx(measured(world, made)["distance"])
    assert (row["recap"]["judge"]["n"], row["recap"]["judge"]["unanswered"]) == (39, {"server: status 400": 1})
    assert run(capsys, *arguments)[0] == Exit.COMPLETE


def test_what_is_skipped_is_counted(world: World, server: Server, tmp_path: Path, capsys) -> None:  # noqa: F811
    """A damaged tar gives what comes before the damage, an image that cannot be read is left out of every measure, of
    the reference as well; the judge is not asked about it."""
    folder = shutil.copytree(world.recap, tmp_path / "x")
    whole = (folder / "1.tar").read_bytes()
    (folder / "1.tar").write_bytes(whole[: len(whole) // 2])
    odd = [("a", {"png": b"no image", "txt": b"red"}), ("b", {"txt": b"red"})]
    with (folder / "2.tar").open("wb") as file:
        write_tar(file, odd)
    made = [item for item in open_images(str(folder)) if item.data != b"no image"]
    assert 20 < len(made) < 40
    arguments = ["--features", f"clip:{world.ours}", "--reference", folder, "--clip", world.theirs, "--side", 32,
                 "--long-clip", world.ours, "--judge", server.url, "--judge-model", "j", "--judge-images", "99",
                 "--judge-cache", tmp_path / "cache", "--out", tmp_path / "table.md", "--json"]  # fmt: skip
    code, told, errors = run(capsys, "--raw", folder, *arguments)
    assert code == Exit.COMPLETE, errors
    report = json.loads(told)
    rows = {row["guidance"]: row["raw"] for row in report["rows"]}
    assert list(rows) == [2.0]
    assert [rows[2.0][name] for name in ("n", "skipped", "damaged")] == [len(made), 2, 1]
    assert rows[2.0]["clip"]["n"] == rows[2.0]["judge"]["n"] == len(made) and server.bodies
    theirs = open_clip(world.theirs)
    scores = ClipScores(theirs)
    images = theirs.encoder.images([partial(attrgetter("data"), i) for i in made], ["?"] * len(made))
    scores.add(images, [str(i.prompt) for i in made])
    assert rows[2.0]["clip"]["value"] == pytest.approx(scores.mean.value, rel=1e-4)
    assert report["left_out"] == {"x, raw prompts": {"image: not an image": 1, "no image": 1}}
    assert any(f"{len(made)} images of" in line and "2 more cannot be read, 1 damaged tar" in line
               for line in report["about"])  # fmt: skip
    assert f"| {len(made)}, 2 skipped, 1 damaged tar |" in (tmp_path / "table.md").read_text()


def _tar(folder: Path, members: list[dict[str, bytes]]) -> Path:
    folder.mkdir()
    with (folder / "0.tar").open("wb") as file:
        write_tar(file, [(f"{i}", m) for i, m in enumerate(members)])
    return folder


def _broken_image(world: World, tmp: Path) -> list[object]:
    return ["--raw", _tar(tmp / "x", [{"png": items(1)[0].data[:50], "txt": b"red"}] * 2), "--clip", world.theirs]


def _no_prompt(world: World, tmp: Path) -> list[object]:
    return ["--raw", world.real, "--clip", world.theirs]


def _no_images(world: World, tmp: Path) -> list[object]:
    return ["--raw", _tar(tmp / "x", [{"txt": b"red"}]), "--clip", world.theirs]


def _empty_folder(world: World, tmp: Path) -> list[object]:
    return ["--raw", tmp, "--clip", world.theirs]


def _damaged_tar(world: World, tmp: Path) -> list[object]:
    (tmp / "x").mkdir()
    (tmp / "x/1.tar").write_bytes((world.recap / "1.tar").read_bytes()[:100])
    return ["--raw", tmp / "x", "--clip", world.theirs]


def _too_few_lines(world: World, tmp: Path) -> list[object]:
    for i, item in enumerate(items(3)):
        (tmp / f"{i}.png").write_bytes(item.data)
    (tmp / METADATA).write_text('{"file_name": "0.png", "prompt": "red"}\n')
    return ["--raw", tmp, "--clip", world.theirs]


def _bad_line(world: World, tmp: Path) -> list[object]:
    arguments = _too_few_lines(world, tmp)
    (tmp / METADATA).write_text('{"file": "0.png"}\n')
    return arguments


def _other_prompts(world: World, tmp: Path) -> list[object]:
    return ["--raw", f"a={world.raw}", "--raw", f"b={world.recap}", "--clip", world.theirs]


def _same_prompts(world: World, tmp: Path) -> list[object]:
    return ["--raw", f"a={world.recap}", "--recap", f"a={world.recap}", "--clip", world.theirs]


def _twice(world: World, tmp: Path) -> list[object]:
    return ["--raw", f"a={world.recap}", "--raw", f"a={world.recap}", "--clip", world.theirs]


def _unfinished(world: World, tmp: Path) -> list[object]:
    copy = shutil.copytree(world.raw, tmp / "raw", symlinks=True)
    next((copy / "ledger").rglob("*.done")).unlink()
    return ["--raw", copy, "--clip", world.theirs]


def _no_image_column(world: World, tmp: Path) -> list[object]:
    copy = shutil.copytree(world.raw, tmp / "raw", symlinks=True)
    for file in (copy / "columns").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns("image"), file)
    return ["--raw", copy, "--clip", world.theirs]


def _no_reference(world: World, tmp: Path) -> list[object]:
    return ["--raw", world.raw, "--features", f"clip:{world.ours}"]


def _inception_missing(world: World, tmp: Path) -> list[object]:
    return ["--raw", world.raw, "--features", f"inception:{tmp / 'x.pth'}", "--reference", world.real]


def _nothing(world: World, tmp: Path) -> list[object]:
    return ["--raw", world.raw]


def _no_sources(world: World, tmp: Path) -> list[object]:
    return ["--clip", world.theirs]


def _no_judge_model(world: World, tmp: Path) -> list[object]:
    return ["--raw", world.raw, "--judge", "http://127.0.0.1:9/v1"]


def _no_key(world: World, tmp: Path) -> list[object]:
    judge = ["--judge", "http://127.0.0.1:9/v1", "--judge-model", "x", "--judge-key-env", "NOT_SET_ANYWHERE"]
    return ["--raw", world.raw, *judge]


@pytest.mark.parametrize(
    "make, why",
    [
        (_broken_image, "0.tar: 0: image: "),
        (_no_prompt, "has no prompt. Give tars a member txt"),
        (_no_images, "holds no image (no image)"),
        (_empty_folder, "holds no .tar"),
        (_damaged_tar, "x holds no image (the tars are damaged)"),
        (_too_few_lines, "has no line for the file: 1.png (2 such; 1 lines, 3 images)"),
        (_bad_line, "line 1: write"),
        (_other_prompts, "no raw prompt of b is one of a"),
        (_same_prompts, "the same prompts in --raw and --recap"),
        (_twice, "names the arm 'a' twice"),
        (_unfinished, "1 of 2 shards are not finished"),
        (_no_image_column, "has no binary field `image` (it has key, prompt"),
        (_no_reference, "a distance needs both"),
        (_inception_missing, "no Inception weights at"),
        (_nothing, "nothing to measure"),
        (_no_sources, "no images. Name them"),
        (_no_judge_model, "--judge needs --judge-model"),
        (_no_key, "NOT_SET_ANYWHERE: this environment variable is empty"),
    ],
)
def test_bad_input_is_named(world: World, tmp_path: Path, capsys, make, why: str) -> None:
    code, told, errors = run(capsys, *make(world, tmp_path))
    assert code == Exit.USAGE and not told and why in errors, errors
