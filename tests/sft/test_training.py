"""What is computed: packed equals unpacked, supervised-only equals full logits, frozen stays frozen, exports load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration

from benchmarks.random_captioner import photo
from hpc import config as configs
from hpc.base.errors import UserError
from recap.sft import model as models
from recap.sft.packing import deal, pack
from recap.sft.task import SftTask
from recap.train import parallel
from recap.train.state import optimizer_of
from tests.sft.checkpoints import captions, tensors
from tests.sft.conftest import Make, tree
from tests.sft.test_own_data import write_tar
from tests.train.ranks import curve, launch, lines, log


def loss_of(task: SftTask, count: int = 16) -> tuple[float, dict[str, torch.Tensor], float]:
    """(mean loss, gradients, share of padding) of the first samples."""
    module = task.module()
    batch = task.batch(0, count, 0, 1)
    total = sum(module(micro) for micro in batch.micro) / batch.weight
    total.backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return total.item(), grads, 1 - batch.useful / batch.tokens


def norm(grads: dict[str, torch.Tensor]) -> float:
    return float(sum(g.square().sum() for g in grads.values()) ** 0.5)


def test_packed_equals_unpacked(task: Make) -> None:
    plain, grads, padded = loss_of(task(rows=4))
    packed, packed_grads, wasted = loss_of(task(pack=512, rows=1))
    several, _, _ = loss_of(task(pack=256, rows=3))
    assert packed == pytest.approx(plain, rel=1e-6) and several == pytest.approx(plain, rel=1e-6)
    assert norm(packed_grads) == pytest.approx(norm(grads), rel=1e-5)
    assert wasted < padded


def test_packing_needs_its_positions(task: Make) -> None:
    """Without restarting positions the loss is another: the test above has teeth."""
    made = task(pack=512)
    module, batch = made.module(), made.batch(0, 16, 0, 1)
    honest = sum(module(micro).item() for micro in batch.micro)
    for micro in batch.micro:
        micro["position_ids"] = torch.arange(micro["input_ids"].shape[1]).expand_as(micro["input_ids"])
    assert abs(sum(module(micro).item() for micro in batch.micro) - honest) > 1e-3 * honest


def test_supervised_only_equals_full_logits(task: Make, captioner: Path) -> None:
    """Against transformers' own loss, on padded rows with labels."""
    made = task(rows=1, logit_chunk=7)
    ours, _, _ = loss_of(made, 4)
    reference = LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32)
    total, count = 0.0, 0
    for position in range(4):
        ready = made.ready(position)
        ids = torch.tensor([ready.rendered.ids])
        pictures = [ready.source.image(h) for h in ready.example.images]
        pixels = made.processor.image_processor(pictures, return_tensors="pt")["pixel_values"] if pictures else None
        logits = reference(input_ids=ids, pixel_values=pixels).logits[0, :-1]
        learned = torch.tensor(ready.rendered.learned)[1:]
        total += float(F.cross_entropy(logits[learned], ids[0, 1:][learned], reduction="sum").detach())
        count += int(learned.sum())
    assert ours == pytest.approx(total / count, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(60, 200), st.integers(1, 4), st.integers(1, 5)
)
def test_packing_plan(lengths: list[int], capacity: int, rows: int, world: int) -> None:
    """Every sample once, no row too long, equally many passes on every rank, of as many rows but for one."""
    planned = pack(lengths, capacity)
    assert sorted(i for row in planned for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in planned)
    dealt = [deal(planned, rows, rank, world) for rank in range(world)]
    assert len({len(mine) for mine in dealt}) == 1
    for turn in zip(*dealt, strict=True):
        sizes = [len(one) for one in turn]
        assert max(sizes) <= rows and max(sizes) - min(sizes) <= 1
    assert sorted(i for mine in dealt for one in mine for row in one for i in row) == list(range(len(lengths)))


def test_a_global_batch_is_the_same_on_any_ranks(task: Make) -> None:
    made = task(pack=256, rows=1)
    alone = made.batch(8, 8, 0, 1)
    shared = [made.batch(8, 8, rank, 3) for rank in range(3)]
    assert sum(part.weight for part in shared) == alone.weight
    assert len({len(part.micro) for part in shared}) == 1
    labels = sorted(int(x) for part in shared for micro in part.micro for x in micro["labels"])
    assert labels == sorted(int(x) for micro in alone.micro for x in micro["labels"])


def trained_names(task: SftTask) -> set[str]:
    return {name.removeprefix("llava.") for name, p in task.module().named_parameters() if p.requires_grad}


def test_trainable_patterns(task: Make) -> None:
    assert all("multi_modal_projector" in name for name in trained_names(task(trainable=["multi_modal_projector"])))
    everything = trained_names(task(trainable=["."]))
    assert not any("post_layernorm" in name for name in everything)  # behind the features: nothing depends on it
    with pytest.raises(UserError, match="matches no parameter"):
        task(trainable=["mm_projector"]).module()


def test_rates_of_their_own(task: Make) -> None:
    """The projector at a tenth of the language model's rate, as in LLaVA's recipe with adapters; a typo is an error."""
    trained = ["multi_modal_projector", "language_model"]
    made = task(trainable=trained, rates={"multi_modal_projector": 2e-5}, train={"lr": 2e-4})
    optimizer = optimizer_of(made.module(), made, made.config.train)
    counts = {group["rate"]: 0 for group in optimizer.param_groups}
    for group in optimizer.param_groups:
        counts[group["rate"]] += len(group["params"])
    assert counts[0.1] == 4 and counts[1.0] == len(trained_names(made)) - 4
    with pytest.raises(UserError, match=r"`rates`: 'mm_projector' matches none"):
        task(rates={"mm_projector": 2e-5}).module()


@pytest.mark.parametrize("pattern", [r"^model\.multi_modal_projector", r"^lm_head", r"layers\.0\.self_attn"])
def test_rates_know_the_models_own_names(task: Make, pattern: str) -> None:
    """Anchored or not, and whatever the module is wrapped in."""
    made = task(rates={pattern: 2e-5}, train={"lr": 2e-4, "checkpointing": True})
    module: Any = made.module()
    wanted = {id(p) for name, p in module.llava.named_parameters() if p.requires_grad and re.search(pattern, name)}
    parallel._recompute(made, module)
    found = optimizer_of(module, made, made.config.train).param_groups
    assert {id(p) for group in found if group["rate"] == pytest.approx(0.1) for p in group["params"]} == wanted != set()


def test_lora(task: Make, captioner: Path, tmp_path: Path) -> None:
    """Adapters alone move (and the projector), and the merged export computes what the adapted model computes."""
    pytest.importorskip("peft")
    made = task(trainable=["multi_modal_projector"], lora={"rank": 4, "alpha": 8, "dropout": 0.0})
    module = made.module()
    moved = {name for name, p in module.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in moved)
    assert all("lora_" in name or "multi_modal_projector" in name for name in moved)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.05)
    micro = made.batch(0, 4, 0, 1).micro[0]
    made.export({name: p.detach() for name, p in module.named_parameters() if p.requires_grad}, tmp_path / "out")
    merged = models.CaptionLoss(LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32), 0)
    assert merged(micro).item() == pytest.approx(module(micro).item(), rel=1e-5)
    plain = models.CaptionLoss(LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32), 0)
    assert plain(micro).item() != pytest.approx(module(micro).item(), rel=1e-3)


def run_stage(captioner: Path, folder: Path, directory: Path, world: int, **changes: Any) -> None:
    train = {"samples": 16, "batch": 8, "lr": 1e-2, "threads": 1} | changes.pop("train", {})
    config = tree(captioner, folder, train=train, **changes)
    environment = {"ONE_READER": "1" if train.get("parallel") == "fsdp" else ""}
    codes = launch(directory, world, config, module="tests.sft.ranks", environment=environment)
    assert codes == [0] * world, (directory / "rank0.log").read_text()


@pytest.mark.parametrize(("world", "parallel"), [(1, "ddp"), pytest.param(2, "fsdp", marks=pytest.mark.slow(ci=True))])
def test_stages(captioner: Path, conversations: Path, tmp_path: Path, world: int, parallel: str) -> None:
    """Stage 1 changes the projector alone; stage 2 leaves the vision tower as it was, bit for bit. The end loads in
    transformers and in the caption job's engine. With FSDP2 rank 0 alone reads the weights."""
    before = tensors(captioner)
    first = {"template": "plain", "trainable": ["multi_modal_projector"]}
    lines = json.loads((conversations / "data.json").read_text())
    short = [row | {"conversations": row["conversations"][:2]} for row in lines if "image" in row]
    (conversations / "short.json").write_text(json.dumps(short))
    data = [{"kind": "llava", "path": str(conversations / "short.json"), "images": str(conversations / "images")}]
    train = {"parallel": parallel}
    run_stage(captioner, conversations, tmp_path / "one", world, data=data, train=train, **first)
    one = tensors(tmp_path / "one/exports/final")
    changed = {name for name in before if not torch.equal(before[name], one[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}
    start = tmp_path / "one/exports/final"
    run_stage(start, conversations, tmp_path / "two", world, pack=256, train=train)
    two = tensors(tmp_path / "two/exports/final")
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert not any("vision_tower" in name for name in changed)
    assert any("language_model" in name for name in changed) and "lm_head.weight" in changed
    captions(tmp_path / "two/exports/final")


@pytest.mark.slow
def test_bf16_and_recomputation(captioner: Path, conversations: Path, tmp_path: Path) -> None:
    """Recomputing activations changes no bit; bf16 changes the loss by little. FSDP2 on two ranks, with adapters."""
    adapters = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "trainable": ["multi_modal_projector"], "pack": 256}
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "recomputed": {"checkpointing": True},
        "bf16": {"checkpointing": True, "precision": "bf16"},
    }
    for name, train in ways.items():
        train = {"parallel": "fsdp", "lr": 1e-3, **train}
        run_stage(captioner, conversations, tmp_path / name, 2, train=train, **adapters)
    assert curve(tmp_path / "recomputed") == curve(tmp_path / "plain")
    plain, bf16 = ([loss for _, loss in curve(tmp_path / name)] for name in ("plain", "bf16"))
    assert bf16 == pytest.approx(plain, rel=0.02) and bf16 != plain
    one, two = (tensors(tmp_path / name / "exports/final") for name in ("plain", "recomputed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_compiled_blocks(captioner: Path, conversations: Path, tmp_path: Path) -> None:
    """torch.compile of each block, over FSDP2 on two ranks: the loss of the uncompiled run up to rounding."""
    for name in ("plain", "compiled"):
        train = {"parallel": "fsdp", "lr": 1e-3, "compile": name == "compiled"}
        run_stage(captioner, conversations, tmp_path / name, 2, train=train, pack=256)
    plain, compiled = ([loss for _, loss in curve(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.slow
def test_resume_on_other_ranks(captioner: Path, conversations: Path, tmp_path: Path) -> None:
    """Killed on 2 ranks, finished on 1: the same order, and the loss curve of an undisturbed run up to rounding."""
    base = tree(captioner, conversations, pack=256, train={"samples": 48, "batch": 8, "save_every": 16, "threads": 1})
    assert launch(tmp_path / "whole", 2, base, module="tests.sft.ranks") == [0, 0]
    launch(tmp_path / "broken", 2, base, module="tests.sft.ranks", stop_at=3)
    assert launch(tmp_path / "broken", 1, base, module="tests.sft.ranks") == [0]
    whole, broken = curve(tmp_path / "whole"), curve(tmp_path / "broken")
    assert [step for step, _ in broken] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in broken] == pytest.approx([loss for _, loss in whole], rel=1e-4)
    assert configs.check(base, "t").work.pack == 256


@pytest.mark.slow(ci=True)
def test_held_out_loss(captioner: Path, conversations: Path, tmp_path: Path) -> None:
    """On two ranks, packed: the loss of the finished model on seven conversations, as one process finds it unpacked.
    The training is that without evaluation."""
    train = {"samples": 24, "batch": 8, "threads": 1, "lr": 0.01, "schedule": "constant"}
    base = tree(captioner, conversations, pack=256, rows=2, train=train)
    assert launch(tmp_path / "without", 2, base, module="tests.sft.ranks") == [0, 0]
    held = {"held_out": [{**base["data"][0], "samples": 7}], "train": {**train, "evaluate_every": 16}}
    assert launch(tmp_path / "with", 2, base | held, module="tests.sft.ranks") == [0, 0]
    assert curve(tmp_path / "with") == curve(tmp_path / "without")
    found = [line for line in lines(tmp_path / "with") if line.get("kind") == "evaluation"]
    assert [line["samples"] for line in found] == [16, 24]
    model = str(tmp_path / "with/exports/final")
    again = tree(captioner, conversations, model=model, data=held["held_out"])
    task = SftTask(configs.check(again, "test").work, Path(model))
    assert found[-1]["held_out/loss"] == pytest.approx(loss_of(task, 7)[0], rel=1e-4)
    assert found[0]["held_out/loss"] > found[-1]["held_out/loss"]


@pytest.mark.slow
def test_what_a_held_out_evaluation_leaves_out(captioner: Path, conversations: Path, tmp_path: Path) -> None:
    """Keys that two tars share, an image that cannot be read, one without a caption and a damaged tar: each counts
    once, on whichever of two ranks, and the loss is that of the others."""
    keys = [f"{n:03d}" for n in range(9)]
    for shard in "ab":
        members = {f"{key}.{end}": data for n, key in enumerate(keys)
                   for end, data in (("jpg", photo(n)), ("txt", f"a picture {shard} {n}".encode()))}  # fmt: skip
        if shard == "a":
            members["003.jpg"] = b"no image"
            del members["005.txt"]
        write_tar(tmp_path / f"t/{shard}.tar", members)
    with (tmp_path / "t/b.tar").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    train = {"samples": 8, "batch": 8, "threads": 1, "lr": 0.01, "evaluate_every": 8}
    held = [{"kind": "columns", "path": str(tmp_path / "t/*.tar")}]
    base = tree(captioner, conversations, train=train, held_out=held, rows=2)
    assert launch(tmp_path / "run", 2, base, module="tests.sft.ranks") == [0, 0], log(tmp_path / "run")[-2000:]
    (found,) = [line for line in lines(tmp_path / "run") if line.get("kind") == "evaluation"]
    model = str(tmp_path / "run/exports/final")
    again = tree(captioner, conversations, model=model, data=held, train={"seed": ~0})
    made = SftTask(configs.check(again, "test").work, Path(model))
    known = {made.ready(position).example.key for position in range(made.size())}
    assert {"a/000", "b/000"} <= known and "a/005" not in known and 9 < made.size() < 18
    told = {name: found[f"held_out/{name}"] for name in ("n", "skipped", "damaged", "without a caption")}
    assert told == {"n": made.size() - 1, "skipped": 1, "damaged": 1, "without a caption": 1}
    assert found["held_out/loss"] == pytest.approx(loss_of(made, made.size())[0], rel=1e-4)


def test_held_out_needs_how_often(task: Make) -> None:
    with pytest.raises(UserError, match=r"`held_out`: and train.evaluate_every go together"):
        task(train={"evaluate_every": 8})
