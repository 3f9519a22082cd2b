"""Rows with and without images on the ranks of one step: under FSDP2 all ranks must meet at the same layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_captioner import photo
from tests.sft.conftest import tree
from tests.train.ranks import curve, launch, lines, log


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """24 conversations: a third with an image, a third without, a third whose image is missing: those are no rows."""
    (tmp_path / "images").mkdir()
    rows: list[dict[str, Any]] = []
    for n in range(24):
        words = "tell me a long story please " * 4 if n % 3 == 1 else "<image>\nWhat is it?"
        answer = "once upon a time " * 5 if n % 3 == 1 else "a picture of colours "
        talk = [{"from": "human", "value": words}, {"from": "gpt", "value": answer + str(n)}]
        rows.append({"id": f"{n}", "conversations": talk} | ({"image": f"{n}.jpg"} if n % 3 != 1 else {}))
        if n % 3 == 2:
            talk[1]["value"] = ""  # an empty answer: rejected, so that some steps have fewer rows than ranks
        (tmp_path / "images" / f"{n}.jpg").write_bytes(photo(n))
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


def kinds(captioner: Path, folder: Path, world: int, batch: int, steps: int) -> set[tuple[str, ...]]:
    """What the ranks' forward passes hold: of each, the kinds by rank."""
    from hpc import config as configs
    from recap.sft.task import SftTask

    task = SftTask(configs.check(tree(captioner, folder, train={"batch": batch}), "test").work, captioner)
    found = set()
    for step in range(steps):
        passes = [task.batch(step * batch, batch, rank, world).micro for rank in range(world)]
        names = [
            ["image" if len(m["image_at"]) else "text" if len(m["at"]) else "none" for m in mine] for mine in passes
        ]
        found |= set(zip(*names, strict=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_every_mixture_of_rows(captioner: Path, mixed: Path, world: int) -> None:
    """The losses of one rank, with the towers of other ranks in their way or not; evaluation and export included."""
    batch, steps = 4, 12 if world == 2 else 24
    seen = kinds(captioner, mixed, world, batch, steps)
    pairs = {(a, b) for held in seen for a in held for b in held if a != b}
    assert {("image", "text"), ("text", "none"), ("image", "none")} <= pairs, seen
    assert world == 4 or {("text", "text"), ("image", "image")} <= seen
    held = [{"kind": "llava", "path": str(mixed / "data.json"), "images": str(mixed / "images"), "samples": 9}]
    found = {}
    for name, ranks, way in (("one", 1, "ddp"), ("several", world, "fsdp"), ("spread", world, "ddp")):
        train = {
            "samples": batch * steps, "batch": batch, "lr": 1e-3, "threads": 1, "parallel": way, "max_rejected": 1.0,
            "evaluate_every": batch * steps, "checkpointing": world == 4,
        }  # fmt: skip
        config = tree(captioner, mixed, train=train, held_out=held)
        codes = launch(mixed / name, ranks, config, module="tests.sft.ranks")
        assert codes == [0] * ranks, log(mixed / name)[-2000:]
        found[name] = [loss for _, loss in curve(mixed / name)]
        found[name] += [line["held_out/loss"] for line in lines(mixed / name) if line.get("kind") == "evaluation"]
        assert (mixed / name / "exports/final/model.safetensors").exists()
    assert len(found["one"]) == steps + 1 and found["several"] == pytest.approx(found["one"], rel=1e-5)
    assert found["spread"] == pytest.approx(found["one"], rel=1e-5)  # none is looked for: all are used in every row
