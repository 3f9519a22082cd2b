"""CLIP trainings of docs/systems.md from their shipped configs: which text an image is trained with, what comes of it.

Sizes and paths are a test's; architecture, text policy, loss and crops are those of the configs.
"""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from hpc import config as configs
from hpc.pipeline import definition as pipeline
from recap.clip.encoder import Encoder
from recap.clip.task import ClipTask
from recap.clip.trainer import ClipTrainer
from recap.text_policy import TextPolicy
from recap.worlds.tars import write_tar
from tests.clip.models import WORDS, tokenizer
from tests.clip.world import COLOURS, PLACES
from tests.support.jobs import ROOT
from tests.support.published import published, rows_of
from tests.train.ranks import launch, log

SAMPLES = 600
SYSTEMS = ROOT / "configs/systems"
NONE: Mapping[str, str] = {}
TOKENS = ("[unused0]", "[unused1]", "picture", "on", "cross", "quiet", "photograph")


def resolved(system: str, stage: str = "") -> dict[str, Any]:
    """The content of a shipped config, or of a stage of a shipped pipeline."""
    path = SYSTEMS / f"{system}.yaml"
    if not stage:
        return configs.load(path, ["cluster=local"]).resolved
    config = pipeline.load(path, ["cluster=local"]).stages[stage].config
    assert config is not None
    return config.resolved


def small(
    tree: dict[str, Any], world: Path, samples: int = 48, seed: int = 0, columns: Mapping[str, str] = NONE
) -> dict[str, Any]:
    """The same training of a tiny model. columns: fields of the world's texts/ by the config's columns."""
    kind = tree["model"]["architecture"]
    folder = world / f"tokenizer-{kind}"
    if not folder.exists():
        tokenizer(folder, kind, (*WORDS.split(), *TOKENS))
    model = {"vision": "32x2x2", "text": "48x2x3", "embed": 24, "patch": 8, "context": 16, "vocabulary": 64}
    places = {name: {"folder": str(world / "texts"), "field": field} for name, field in columns.items()}
    assert set(places) == set(tree["data"]["columns"]) - {"org_caption"}
    data = {"shards": [str(world / "tars")], "streams": 4, "window": 2, "decoders": 1, "keep": None}
    train = {
        "batch": 48, "lr": 3e-3, "warmup": 0.1, "workers": 0, "threads": 1, "compile": False, "precision": "fp32",
        "samples": 0, "epochs": 1.0, "log_every": 0, "save_every": 0, "seed": seed,
    }  # fmt: skip
    more = {"org_caption": {"member": "txt"}} if "org_caption" in tree["data"]["columns"] else {}
    return tree | {
        "name": "small", "cluster": {"kind": "local"}, "base_lr": 0.0,
        "model": tree["model"] | model | {"tokenizer": str(folder)},
        "data": tree["data"] | data | {"columns": more | places},
        "stages": [{"image": 32, "samples": samples}],
        "train": tree["train"] | train,
    }  # fmt: skip


def task(tree: dict[str, Any]) -> ClipTask:
    made = configs.check(json.loads(json.dumps(tree)), "test").trainer()
    assert isinstance(made, ClipTrainer)
    return ClipTask(made.config, 0, None, "")


def trained(directory: Path, tree: dict[str, Any]) -> Path:
    """The folder of its weights."""
    assert launch(directory, 1, tree, module="tests.sft.ranks") == [0], log(directory)
    return directory / "exports/final"


def policy(tree: dict[str, Any]) -> TextPolicy:
    config = configs.check(json.loads(json.dumps(tree | {"cluster": {"kind": "local"}})), "test").work
    return TextPolicy(config.text)


def shares(made: TextPolicy, row: Mapping[str, str | None], count: int = 1000, epoch: int = 0) -> Counter[str]:
    return Counter(made.draw(row, 0, epoch, f"s/{number}")[0].column for number in range(count))


def near(count: float, share: float, total: int) -> bool:
    """Within three standard deviations."""
    return abs(count - total * share) < 3 * (total * share * (1 - share)) ** 0.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tars/: squares on grounds, alt-texts that tell of the square alone; texts/: columns that tell more, or of others.

    truth.json: (square, ground, place) of each sample, in order.
    """
    folder = tmp_path_factory.mktemp("systems")
    (folder / "tars").mkdir()
    (folder / "texts").mkdir()
    rng, truth = random.Random("systems"), []
    for shard in range(2):
        samples, rows = [], list[dict[str, str]]()
        for number in range(SAMPLES // 2):
            ground, square = rng.sample(sorted(COLOURS), 2)
            place = rng.choice(sorted(PLACES))
            image = Image.new("RGB", (32, 32), COLOURS[ground])
            image.paste(COLOURS[square], (*PLACES[place], PLACES[place][0] + 10, PLACES[place][1] + 10))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            key = f"{shard:03d}{number:05d}"
            truth.append((square, ground, place))
            samples.append((key, {"png": buffer.getvalue(), "txt": f"a {square} picture".encode()}))
            rows.append({
                "key": key, "ground": f"a {ground} picture", "whole": f"a {square} cross on {ground} {place}",
                "wrong": f"a {next(c for c in sorted(COLOURS) if c not in (ground, square))} picture",
            })  # fmt: skip
        with (folder / "tars" / f"{shard:03d}.tar").open("wb") as file:
            write_tar(file, samples)
        pq.write_table(pa.Table.from_pylist(rows), folder / "texts" / f"{shard:03d}.parquet", row_group_size=512)
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder


def pictures(world: Path) -> list[Any]:
    """The images of all samples, as an encoder takes them."""
    from recap.data.tars import Sample, read_samples

    found = []
    for tar in sorted((world / "tars").glob("*.tar")):
        with tar.open("rb") as file:
            found += [partial(bytes, s.members["png"]) for s in read_samples(file) if isinstance(s, Sample)]
    return found


def nearest(encoder: Encoder, world: Path, texts: Sequence[str]) -> list[int]:
    """For each picture the number of the text that is nearest."""
    images = encoder.images(pictures(world), [str(number) for number in range(SAMPLES)])
    return (images @ encoder.texts(texts)[0].T).argmax(1).tolist()


# --- which text an image is trained with --------------------------------------------------------------


def test_veclip_trains_on_half_of_each() -> None:
    made = policy(resolved("veclip_clip"))
    drawn = shares(made, {"org_caption": "raw", "vecap": "rewritten"})
    assert set(drawn) == {"org_caption", "vecap"} and near(drawn["vecap"], 0.5, 1000)


def test_fused_captions_or_else_the_original() -> None:
    made = policy(resolved("capsfusion_clip"))
    assert shares(made, {"org_caption": "raw", "fused": "fused"}, 50) == {"fused": 50}
    assert shares(made, {"org_caption": "raw", "fused": None}, 50) == {"org_caption": 50}


def test_laclip_draws_one_of_five_texts_anew_in_each_epoch() -> None:
    tree = resolved("laclip", "clip")
    rewrites = {name for name, column in tree["data"]["columns"].items() if column["field"] == "rewrite"}
    assert rewrites == {"names", "short", "long", "order"}
    made, row = policy(tree), dict.fromkeys(rewrites, "two words") | {"org_caption": "raw"}
    drawn = shares(made, row | {"org_caption": "raw text"})
    assert set(drawn) == rewrites | {"org_caption"} and all(near(count, 0.2, 1000) for count in drawn.values())
    texts = [[made.draw(row, 0, epoch, f"s/{n}")[0].column for n in range(200)] for epoch in range(2)]
    assert sum(one == other for one, other in zip(*texts, strict=True)) < 100
    short = dict.fromkeys(rewrites, "word") | {"org_caption": "raw text"}
    assert shares(made, short, 50) == {"org_caption": 50}  # of fewer than two words: no rewrite
    assert set(shares(made, row, 50)) == rewrites  # nor an original


def test_laclips_banks_are_four_and_their_examples_are_drawn_by_key() -> None:
    stages = pipeline.load(SYSTEMS / "laclip.yaml", ["cluster=local"]).stages
    banks = [
        stage.config.work.formats["laclip"].examples
        for stage in stages.values()
        if stage.kind == "map" and stage.config
    ]
    files = [Path(bank.file).read_text().splitlines() for bank in banks]
    assert len({bank.file for bank in banks}) == 4 and all(len(lines) >= 8 for lines in files)
    assert len({json.loads(line)["target"] for lines in files for line in lines}) == sum(map(len, files))


def test_align_trains_on_alt_texts_that_were_kept_and_reads_no_other_column() -> None:
    tree = resolved("align", "clip")
    assert tree["data"]["columns"].keys() == {"org_caption"} and tree["data"]["keep"].endswith("align/clean")
    assert policy(tree).columns == ["org_caption"]


def test_dreamlips_texts_are_the_raw_one_and_sentences_of_six_columns(world: Path) -> None:
    tree = resolved("dreamlip", "clip")
    made, captions = policy(tree), [f"{size}_{name}" for size in ("short", "long") for name in "abc"]
    row = {name: f"{name} one. {name} two." for name in captions} | {"raw": "raw"}
    drawn = Counter[str]()
    for number in range(500):
        texts = made.draw(row, 0, 0, f"s/{number}")
        assert len(texts) == 7 and texts[0].text == "raw" and len({text.text for text in texts}) == 7
        drawn.update(text.text for text in texts[1:])
    assert len(drawn) == 12 and all(near(count, 0.5, 500) for count in drawn.values())
    single = dict.fromkeys(captions, "One sentence") | {"raw": "raw"}
    assert [t.text for t in made.draw(single, 0, 0, "s/0")] == ["raw", *["One sentence"] * 6]
    assert [t.text for t in made.draw({"raw": "raw"}, 0, 0, "s/0")] == ["raw"] * 7
    fields = dict(zip(captions, ("ground", "whole", "wrong") * 2, strict=True))
    running = task(small(tree, world, columns={"raw": "whole", **fields}))
    loss = running.module()(running.batch(0, 48, 0, 1).micro[0])
    loss.backward()
    assert running.config.loss.grouping_threshold == 0.0 and torch.isfinite(loss)


# --- what comes of it ---------------------------------------------------------------------------------


def test_a_prefix_changes_what_a_text_means(world: Path) -> None:
    tree = small(resolved("prefix_conditioning"), world, columns={"re_caption": "ground"})
    running = task(tree)
    alt, recap = (running.policy.prefix(column) for column in ("org_caption", "re_caption"))
    assert (alt, recap) == ("[unused0]", "[unused1]")
    drawn = [ready.value.texts[0].column for ready in running.samples.take(0, 48)]
    ids = running.batch(0, 48, 0, 1).micro[0]["ids"]
    token = {c: running.tokens.tokenizer.convert_tokens_to_ids(running.policy.prefix(c)) for c in set(drawn)}
    assert len(token) == 2 and ids[:, 0, 1].tolist() == [token[column] for column in drawn]
    rows = running.tokens.shape(running.tokens.ids(["a red picture"] * 3), [None, alt, recap], 16)
    features = running.module()({"ids": torch.from_numpy(rows)})
    assert all(not torch.allclose(features[i], features[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_prefix_says_which_kind_of_text_is_asked(world: Path, tmp_path: Path, seed: int) -> None:
    """The same words tell of the square in alt-texts, and of the ground in new captions."""
    tree = small(resolved("prefix_conditioning"), world, 4800, seed, {"re_caption": "ground"})
    tree["text"] = tree["text"] | {"weights": {"org_caption": 0.5, "re_caption": 0.5}}
    model, truth = trained(tmp_path, tree), json.loads((world / "truth.json").read_text())
    texts = [f"a {colour} picture" for colour in sorted(COLOURS)]
    right = {}
    for kind, prefix in tree["text"]["prefix"].items():
        found = [sorted(COLOURS)[n] for n in nearest(Encoder(model, prefix=prefix), world, texts)]
        for at, name in enumerate(("square", "ground")):
            right[kind, name] = sum(a == b[at] for a, b in zip(found, truth, strict=True)) / SAMPLES
    assert right["org_caption", "square"] > right["re_caption", "square"] + 0.2
    assert right["re_caption", "ground"] > right["org_caption", "ground"] + 0.2


@pytest.mark.slow
def test_clip_and_its_score(world: Path, tmp_path: Path) -> None:
    """Trained on alt-texts alone, opened by transformers; its scores tell right texts from wrong ones."""
    model = trained(tmp_path / "run", small(resolved("clip"), world, 7200))
    opened = CLIPModel.from_pretrained(model)
    assert opened.config.vision_config.hidden_act == "quick_gelu" and opened.logit_scale.exp() <= 100.001
    truth = json.loads((world / "truth.json").read_text())
    found = nearest(Encoder(model), world, [f"a {colour} picture" for colour in sorted(COLOURS)])
    right = sum(sorted(COLOURS)[n] == square for n, (square, *_) in zip(found, truth, strict=True)) / SAMPLES
    assert right > 0.5  # by chance a quarter
    scores = published({
        "name": "scores", "runs": str(tmp_path), "operator": "recap.score.operator.ScoreOperator", "decode_workers": 0,
        "data": {
            "shards": [f"{world}/tars"],
            "columns": {"org": {"member": "txt"}, "wrong": {"folder": f"{world}/texts", "field": "wrong"}},
        },
        "texts": ["org", "wrong"], "scorers": {"clip": {"clip": {"model": str(model)}}},
    })  # fmt: skip
    rows = rows_of(scores)
    told = sum(row["clip_org"] > row["clip_wrong"] for row in rows)
    assert told > 0.8 * len(rows) == 0.8 * SAMPLES


@pytest.mark.slow
def test_half_rewritten_texts_raise_retrieval(world: Path, tmp_path: Path) -> None:
    """VeCLIP's mix against alt-texts alone, at one seed and equal length: retrieval by whole descriptions."""
    found = {}
    for name in ("mix", "alt"):
        tree = small(resolved("veclip_clip"), world, 7200, columns={"vecap": "whole"})
        if name == "alt":
            tree["text"] = tree["text"] | {"weights": {"org_caption": 1.0}}
        encoder = Encoder(trained(tmp_path / name, tree))
        truth = [tuple(one) for one in json.loads((world / "truth.json").read_text())]
        scenes = sorted(set(truth))
        texts = [f"a {square} cross on {ground} {place}" for square, ground, place in scenes]
        hits = [scenes[n] == one for n, one in zip(nearest(encoder, world, texts), truth, strict=True)]
        found[name] = sum(hits) / SAMPLES
    assert found["mix"] > found["alt"] + 0.1
