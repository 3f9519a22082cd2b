"""Evaluations: figures equal clip_benchmark's, sources are read as they are published, ranks share the work."""

from __future__ import annotations

import json
import os
import random
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hpc.base.errors import UserError
from recap.clip import evaluate, metrics, weights
from recap.clip.settings import EvaluationConfig
from recap.clip.tokens import Tokens
from recap.data.column import ColumnConfig
from recap.worlds.tars import write_tar
from tests.clip.models import tiny
from tests.clip.ranks import on_ranks
from tests.clip.world import sample


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = tiny(folder)
    weights.save(weights.build(config, 32, 0), config, Tokens(config), 32, folder / "export")
    return folder / "export"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """The same 30 samples in every published form."""
    folder = tmp_path_factory.mktemp("sets")
    rng = random.Random(0)
    made = [sample(rng) for _ in range(30)]
    for name in ("coco/val2014", "urban/image", "urban/caption"):
        (folder / name).mkdir(parents=True)
    entries, pairs = [], []
    for i, (image, alt, caption) in enumerate(made):
        (folder / f"coco/val2014/{i}.png").write_bytes(image)
        (folder / f"urban/image/{i:03d}.png").write_bytes(image)
        (folder / f"urban/caption/{i:03d}.txt").write_text(caption)
        sentences = [{"raw": text} for text in (alt, caption)]
        entries.append(
            {
                "filepath": "val2014",
                "filename": f"{i}.png",
                "split": "test" if i < 20 else "val",
                "sentences": sentences,
            }
        )
        pairs.append({"image_path": f"val2014/{i}.png", "true_caption": caption, "false_caption": alt})
    (folder / "coco/dataset.json").write_text(json.dumps({"images": entries}))
    (folder / "coco/pairs.json").write_text(json.dumps(pairs))
    with (folder / "all.tar").open("wb") as file:
        members = [
            (f"{i:03d}", {"png": m[0], "txt": m[2].encode(), "cls": b"%d" % (i % 4)}) for i, m in enumerate(made)
        ]
        write_tar(file, members)
    (folder / "classes.txt").write_text("red\ngreen\nblue\nwhite\n")
    (folder / "prompts.txt").write_text("a {} photo\nthe {} flag\n")
    return folder


def features(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_recall_equals_clip_benchmark() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    images = features(60, 0)
    image_of_text = torch.arange(60).repeat_interleave(3)
    texts = F.normalize(images[image_of_text] + 0.8 * features(180, 1), dim=-1)

    class Given:
        def encode_image(self, x: torch.Tensor) -> torch.Tensor:
            return x

        encode_text = encode_image

    batches = [(images[i : i + 20], [[n * 3 + t for t in range(3)] for n in range(i, i + 20)]) for i in (0, 20, 40)]
    found = theirs.evaluate(
        Given(), batches, lambda numbers: texts[numbers], "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    ours = metrics.recall(images, texts, image_of_text)
    for k in (1, 5, 10):
        assert ours[f"t2i_r{k}"] == pytest.approx(found[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert ours[f"i2t_r{k}"] == pytest.approx(found[f"text_retrieval_recall@{k}"], abs=1e-6)
    assert 0.2 < ours["t2i_r1"] < 0.95


def test_zero_shot_equals_clip_benchmark() -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    prompts, images, labels = features(12 * 3, 2), features(50, 3), torch.arange(50) % 12

    class Given:
        def encode_text(self, x: torch.Tensor) -> torch.Tensor:
            return x

    names = [f"{i}" for i in range(12)]
    table = {f"{i} {t}": prompts[i * 3 + t] for i in range(12) for t in range(3)}
    classifier = theirs.zero_shot_classifier(
        Given(),
        lambda texts: torch.stack([table[t] for t in texts]),
        names,
        ["{c} 0", "{c} 1", "{c} 2"],
        "cpu",
        amp=False,
    )
    classes = metrics.class_features(prompts.unflatten(0, (12, 3)))
    torch.testing.assert_close(classes, classifier.T)
    near = (100 * images @ classifier).topk(5).indices == labels[:, None]  # their `accuracy` fails with NumPy 2
    expected = {"top1": near[:, :1].double().mean().item(), "top5": near.any(1).double().mean().item()}
    assert metrics.accuracy(images, classes, labels) == pytest.approx(expected)


def test_figures_by_hand() -> None:
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8], [0, 0.8, 0.6], [0, 0, 1.0]])
    found = metrics.recall(images, texts, torch.tensor([0, 1, 1, 2]), (1, 2))
    assert found == {"i2t_r1": 1.0, "i2t_r2": 1.0, "t2i_r1": 0.75, "t2i_r2": 1.0}
    assert metrics.choice(images, texts[[0, 1, 3]], texts[[1, 3, 0]]) == {"accuracy": 1.0}
    assert metrics.accuracy(images, images, torch.tensor([0, 2, 2]), (1, 2)) == {"top1": 2 / 3, "top2": 2 / 3}


def run(capsys: Any, *arguments: object) -> dict[str, Any]:
    evaluate.main([str(a) for a in arguments])
    return json.loads(capsys.readouterr().out)


def test_every_task_from_its_published_form(model, sets, capsys) -> None:
    coco = run(capsys, model, "retrieve", "--karpathy", sets / "coco/dataset.json", "--images", sets / "coco")
    urban = run(capsys, model, "retrieve", "--folder", sets / "urban")
    tars = run(capsys, model, "retrieve", "--shards", sets / "all.tar")
    names = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    counts = {"n", "texts", "skipped", "damaged"}
    assert names | counts | {"cut", "context", "image", "model", "task"} == set(coco)
    assert {n: urban[n] for n in names} == {n: tars[n] for n in names}
    assert coco["cut"] == 0.0 and 0 <= coco["t2i_r1"] <= coco["t2i_r10"] <= 1
    choice = run(capsys, model, "attribute", "--json", sets / "coco/pairs.json", "--images", sets / "coco")
    assert 0 <= choice["accuracy"] <= 1
    classes = run(
        capsys, model, "classify", "--shards", sets / "all.tar", "--classes", sets / "classes.txt",
        "--templates", sets / "prompts.txt",
    )  # fmt: skip
    assert 0 <= classes["top1"] <= 1 and "top5" not in classes


def test_a_damaged_tar_is_counted_beside_the_metrics(model, sets, tmp_path, capsys) -> None:
    whole = run(capsys, model, "retrieve", "--shards", sets / "all.tar")
    assert (whole["skipped"], whole["damaged"]) == (0, 0) and whole["n"] == whole["texts"]
    data = (sets / "all.tar").read_bytes()
    (tmp_path / "all.tar").write_bytes(data[: len(data) // 2])
    half = run(capsys, model, "retrieve", "--shards", tmp_path / "all.tar")
    assert half["damaged"] == 1 and 0 < half["n"] < whole["n"]


def test_an_image_that_cannot_be_read_is_counted(model, sets, tmp_path, capsys) -> None:
    """The numbers are those of the set without it, for every task and on its own pairs."""
    import shutil

    coco, urban = tmp_path / "coco", tmp_path / "urban"
    shutil.copytree(sets / "coco", coco)
    shutil.copytree(sets / "urban", urban)
    (coco / "val2014/3.png").write_bytes(b"no image")
    (urban / "image/003.png").write_bytes(b"no image")
    commands = {
        "urban": ["retrieve", "--folder", urban],
        "karpathy": ["retrieve", "--karpathy", coco / "dataset.json", "--images", coco],
        "attribute": ["attribute", "--json", coco / "pairs.json", "--images", coco],
    }
    damaged = {name: run(capsys, model, *command) for name, command in commands.items()}
    (urban / "caption/003.txt").unlink()
    for file in ("dataset.json", "pairs.json"):
        found = json.loads((coco / file).read_text())
        rows = found["images"] if isinstance(found, dict) else found
        del rows[3]
        (coco / file).write_text(json.dumps(found))
    for name, command in commands.items():
        without = run(capsys, model, *command)
        assert damaged[name] == without | {"skipped": 1}, name


def test_classes_from_an_image_folder(model, sets, tmp_path, capsys) -> None:
    """The same numbers as from tars with .cls; names from the folders, or from a file."""
    import tarfile

    names = ["red", "green", "blue", "white"]
    with tarfile.open(sets / "all.tar") as tar:
        for member in tar.getmembers():
            key, _, kind = member.name.partition(".")
            if kind == "png":
                place = tmp_path / "val" / f"{int(key) % 4}_{names[int(key) % 4]}"
                place.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                (place / member.name).write_bytes(content.read())
                (place / f"._{member.name}").write_bytes(b"what macOS leaves")
    (tmp_path / "names.tsv").write_text(
        "".join(f"{i}_{name}\t{name}\n" for i, name in reversed(list(enumerate(names))))
    )
    more = ["--templates", sets / "prompts.txt"]
    tars = run(capsys, model, "classify", "--shards", sets / "all.tar", "--classes", sets / "classes.txt", *more)
    for classes in (sets / "classes.txt", tmp_path / "names.tsv"):
        found = run(capsys, model, "classify", "--folder", tmp_path / "val", "--classes", classes, *more)
        assert {name: found[name] for name in ("top1", "n", "skipped")} == {
            n: tars[n] for n in ("top1", "n", "skipped")
        }
    assert run(capsys, model, "classify", "--folder", tmp_path / "val")["n"] == tars["n"]
    (tmp_path / "few.txt").write_text("red\n")
    with pytest.raises(SystemExit, match=r"few.txt has 1 names, .* 4 folders"):
        evaluate.main(
            [str(model), "classify", "--folder", str(tmp_path / "val"), "--classes", str(tmp_path / "few.txt")]
        )


def test_the_share_of_cut_texts_is_told(model) -> None:
    _, cut = evaluate.Encoder(model).texts(["a " * 10, "a " * 11, "a " * 50, "red"])
    assert cut == 0.5  # 12 tokens, two of them special


def shared(rank: int, world: int, model: Path, folder: Path) -> dict[str, float]:
    return evaluate.retrieve(evaluate.Encoder(model, batch=4), evaluate.folder(folder))


def test_ranks_share_the_work(model, sets) -> None:
    assert on_ranks(2, shared, model, sets / "urban") == pytest.approx(shared(0, 1, model, sets / "urban"))


def task_of_a_step(rank: int, arguments: list[str], environment: dict[str, str], out: Path) -> None:
    os.environ.update(environment, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
    torch.set_num_threads(1)
    sys.stdout = out.open("w")
    evaluate.main(arguments)
    sys.stdout.flush()


@pytest.mark.parametrize("tasks", [1, 3])
def test_tasks_of_one_srun_share_the_work(model, sets, tmp_path, capsys, tasks) -> None:
    """Also from tars, of which a rank keeps its own images. A batch script, one task, has SLURM_NTASKS too."""
    arguments = [str(model), "retrieve", "--shards", str(sets / "all.tar"), "--batch", "4"]
    environment = {"SLURM_NTASKS": "3", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    if tasks > 1:
        environment["SLURM_STEP_NUM_TASKS"] = str(tasks)
    started = [
        get_context("fork").Process(target=task_of_a_step, args=(rank, arguments, environment, tmp_path / f"{rank}"))
        for rank in range(tasks)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert all(process.exitcode == 0 for process in started)
    said = [(tmp_path / f"{rank}").read_text() for rank in range(tasks)]
    assert said[1:] == [""] * (tasks - 1)
    assert json.loads(said[0]) == pytest.approx(run(capsys, *arguments))


def test_odd_labels_and_prompts_are_named(model, sets, tmp_path) -> None:
    def classify(**changes: str) -> None:
        given: dict[str, Any] = {"shards": [str(sets / "all.tar")], "classes": str(sets / "classes.txt"), **changes}
        evaluate.measure(evaluate.Encoder(model), EvaluationConfig("classify", **given))

    (tmp_path / "few.txt").write_text("red\ngreen\n")
    with pytest.raises(UserError, match=r"all/002: its .cls is '2', not a number from 0 to 1, which .*few.txt"):
        classify(classes=str(tmp_path / "few.txt"))
    with pytest.raises(UserError, match=r"its .txt is '.*', not a number"):
        classify(label="txt")
    with pytest.raises(UserError, match=r"few.txt: 'red' has no {} for the class's name"):
        classify(templates=str(tmp_path / "few.txt"))
    with pytest.raises(UserError, match=r"pairs.json is not a Karpathy split"):
        evaluate.karpathy(sets / "coco/pairs.json", sets / "coco")
    with pytest.raises(UserError, match=r"dataset.json is not ARO's list of pairs"):
        evaluate.attribution(sets / "coco/dataset.json", sets / "coco")


def test_what_is_missing_is_named(model, sets, tmp_path) -> None:
    with pytest.raises(UserError, match="has no images of split 'train'"):
        evaluate.karpathy(sets / "coco/dataset.json", sets / "coco", "train")
    with pytest.raises(UserError, match=r"has no caption/\*.txt"):
        evaluate.folder(tmp_path)
    with pytest.raises(UserError, match="no sample has an image and a text"):
        evaluate.tars([str(sets / "all.tar")], ColumnConfig(member="none"))
    with pytest.raises(UserError, match=r"lacks 1 of 1 shards \(first: all\)"):
        evaluate.tars([str(sets / "all.tar")], ColumnConfig(folder=str(tmp_path)))
    with pytest.raises(UserError, match=r"gone.png"):
        evaluate.Encoder(model).images([(tmp_path / "gone.png").read_bytes], [str(tmp_path / "gone.png")])
    with pytest.raises(SystemExit, match=r"x.json does not exist"):
        evaluate.main([str(model), "attribute", "--json", str(tmp_path / "x.json")])
