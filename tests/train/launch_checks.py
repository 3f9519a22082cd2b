"""Every check of a training that a launch makes, each with the smallest thing that it is for: the list that
docs/training_checks.md is made from.

    python -m tests.train.launch_checks > docs/training_checks.md
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Changes = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A config that is refused.

    trainer: sft, clip, dit; "" for each of them. key: that the message begins with. what: in the docs. changes: to a
    config that can be launched, as group__key=value. says: words of the message. spoil: damages a copy of the folder
    that is made for the case, and gives further changes.
    """

    trainer: str
    key: str
    what: str
    changes: Changes
    says: str
    spoil: Callable[[Path], Changes] | None = field(default=None)


# --- what a case damages --------------------------------------------------------------------------


def model(**values: Any) -> Callable[[Path], Changes]:
    """The shipped captioner with other files: name (dots as __) -> keys to change (None: taken out), text, or None."""

    def spoil(folder: Path) -> Changes:
        shutil.copytree("recap/demo/captioner", folder / "model")
        for name, change in values.items():
            path = folder / "model" / name.replace("__", ".")
            if change is None:
                path.unlink()
            elif isinstance(change, str):
                path.write_text(change)
            else:
                _keys(path, change)
        return {"model": str(folder / "model")}

    return spoil


def _keys(path: Path, change: dict[str, Any]) -> None:
    found = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def renamed(token: str) -> Callable[[Path], Changes]:
    def spoil(folder: Path) -> Changes:
        text = Path("recap/demo/captioner/tokenizer.json").read_text()
        return model(tokenizer__json=text.replace(json.dumps(token), json.dumps(token + "?")))(folder)

    return spoil


def tokenizer(*names: str, **values: Any) -> Callable[[Path], Changes]:
    """CLIP's tokenizer: without special tokens of these names, or with other values in tokenizer_config.json."""

    def spoil(folder: Path) -> Changes:
        from tests.clip.models import tokenizer as made

        kind = "recap" if "cls_token" in names else "hf"
        made(folder / "words", kind)
        (folder / "words/special_tokens_map.json").unlink(missing_ok=True)
        _keys(folder / "words/tokenizer_config.json", dict.fromkeys(names) | values)
        return {"model__architecture": kind, "model__tokenizer": str(folder / "words")}

    return spoil


def unreadable_tokenizer(folder: Path) -> Changes:
    (folder / "tokenizer.json").write_text("{")
    return {"model__tokenizer": str(folder)}


def end_of_id_two(folder: Path) -> Changes:
    return tokenizer(eos_token="[CLS]")(folder)


def start(**change: Any) -> Callable[[Path], Changes]:
    """A DiT to go on from, of the right shape but for this."""

    def spoil(folder: Path) -> Changes:
        shape = {"in_channels": 3, "sample_size": 16, "caption_channels": 32, "patch_size": 4, "out_channels": 3,
                 "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}  # fmt: skip
        if change:
            (folder / "config.json").write_text(json.dumps(shape | change))
        return {"model__start": str(folder)}

    return spoil


def encoder(**change: Any) -> Callable[[Path], Changes]:
    """A text encoder with another config, and weights unless `weights` is False; nothing where nothing is given."""

    def spoil(folder: Path) -> Changes:
        if change:
            (folder / "config.json").write_text(
                json.dumps({"model_type": "clip_text_model", "hidden_size": 32} | change)
            )
        if change.get("weights", bool(change)):
            (folder / "model.safetensors").write_bytes(b"")
        return {"model__text_encoder": str(folder)}

    return spoil


def stored(name: str, shape: tuple[int, ...], changes: Changes, **about: str) -> Callable[[Path], Changes]:
    """A column of latents or states of this shape, made by something else where `about` says so."""

    def spoil(folder: Path) -> Changes:
        from recap.dit.encoder_files import text_encoder_digest, tokenizer_digest
        from recap.dit.tensor_blob import pack
        from recap.dit.vae import vae_digest

        world = folder.parent / "world"
        known = {"encoder": text_encoder_digest(world / "encoder"), "tokenizer": tokenizer_digest(world / "encoder")}
        known |= {"vae": vae_digest("recap/demo/vae"), "kind": "moments"}
        blob = pack(name, np.zeros(shape, np.float16), known | about)
        for tar in (world / "tars").glob("*.tar"):
            table = pa.table({"key": ["0"], name: pa.array([blob], pa.binary()), "status": ["ok"]})
            pq.write_table(table, folder / f"{tar.stem}.parquet")
        field = about.get("field", name)
        columns = {"org_caption": {"member": "txt"}, "made": {"folder": str(folder), "field": field}}
        return {"data__columns": columns, "text__weights": {"org_caption": 1.0}} | changes

    return spoil


LATENTS = {"data__latents": "made", "model__vae": "recap/demo/vae", "model__image": 32, "model__size": "32x2x2/2"}
STATES = {"data__embeddings": {"org_caption": "made"}}


def gzipped(name: str) -> Callable[[Path], Changes]:
    def spoil(folder: Path) -> Changes:
        (folder / name).write_bytes(b"\x1f\x8b")
        return {"data__shards": [str(folder / name)]}

    return spoil


def column(field: str) -> Callable[[Path], Changes]:
    """A column that lacks the tars, for a fine-tuning."""

    def spoil(folder: Path) -> Changes:
        source = {"kind": "columns", "path": str(folder.parent / "world/tars/*.tar"), field: str(folder)}
        return {"data": [source]}

    return spoil


# --- the list -------------------------------------------------------------------------------------

EVERY = [
    Case("", "train.samples", "a negative number", {"train__samples": -1}, "must not be negative"),
    Case("", "train.keep", "less than one checkpoint, batch or step ahead", {"train__keep": 0}, "at least 1"),
    Case("", "train.lr", "a rate that is not above 0", {"train__lr": 0.0}, "must be above 0"),
    Case("", "train.warmup", "warm-up of the whole training", {"train__warmup": 1.0}, "share of the training"),
    Case("", "train.profile", "no first and last step", {"train__profile": [3]}, "first and a last step"),
    Case("", "train.precision", "an unknown precision, schedule or way to spread", {"train__precision": "fp8"},
         "write one of fp32"),
    Case("", "train.trackers", "an unknown tracker", {"train__trackers": ["excel"]}, "tensorboard or wandb"),
    Case("", "train.batch", "fewer samples than ranks", {"train__batch": 1, "data__streams": 1}, "smaller than the"),
    Case("", "train.batch", "a batch that the ranks do not divide", {"train__batch": 49, "data__streams": 7},
         "does not divide among 2 ranks"),
]  # fmt: skip

WORLD = {"kind": "world", "path": "recap.worlds.flags.sample", "samples": 9}
SFT = [
    Case("sft", "model", "neither `model` nor `make`, or both", {"model": ""}, "name the checkpoint to start from"),
    Case("sft", "dtype", "an unknown dtype of the export", {"dtype": "fp61"}, "'fp61' is unknown"),
    Case("sft", "template", "an unknown template", {"template": "chatml"}, "Write one of plain"),
    Case("sft", "too_long", "neither truncate nor reject", {"too_long": "cut"}, "write truncate or reject"),
    Case("sft", "trainable", "nothing is trained", {"trainable": []}, "nothing would be trained"),
    Case("sft", "trainable", "a pattern that is no regular expression", {"trainable": ["("]}, "no regular expression"),
    Case("sft", "pack", "rows shorter than a sample", {"pack": 16}, "such samples fit no row"),
    Case("sft", "rows", "rows, tokens, chunks or adapters of no size", {"rows": 0}, "must be at least 1"),
    Case("sft", "rates", "a rate that is not above 0", {"rates": {"lm_head": 0.0}}, "is no learning rate"),
    Case("sft", "data", "no source", {"data": []}, "no source"),
    Case("sft", "held_out", "held-out data without `train.evaluate_every`, or the reverse",
         {"train__evaluate_every": 8},
         "go together"),
    Case("sft", "train.workers", "several workers on tars",
         {"train__workers": 2, "data": [{"kind": "columns", "path": "recap/demo/flags/*.tar"}]}, "its own window"),
    Case("sft", r"data\[0\].kind", "an unknown kind of source", {"data": [WORLD | {"kind": "csv"}]},
         "Write one of llava"),
    Case("sft", r"data\[0\].path", "a source without a path", {"data": [{"kind": "llava"}]}, "missing"),
    Case("sft", r"data\[0\].path", "conversations that do not exist", {"data": [{"path": "/nowhere.json"}]},
         "does not exist"),
    Case("sft", r"data\[0\].images", "images that do not exist",
         {"data": [{"path": "pyproject.toml", "images": "/nowhere*.tar"}]}, "neither a folder nor an archive"),
    Case("sft", r"data\[0\].samples", "a world without a number of samples", {"data": [WORLD | {"samples": 0}]},
         "no end"),
    Case("sft", r"data\[0\].prompts", "no question", {"data": [WORLD | {"prompts": []}]}, "asked nothing"),
    Case("sft", r"data\[0\].repeat", "fewer than one pass", {"data": [WORLD | {"repeat": 0}]}, "at least 1"),
    Case("sft", r"data\[0\].keep", "a selection of tars for a source that has none",
         {"data": [WORLD | {"keep": "runs/x"}]}, "is of tars"),
    Case("sft", r"data\[0\].path", "a world whose module does not exist",
         {"data": [WORLD | {"path": "recap.no.sample"}]}, "no module 'recap.no'"),
    Case("sft", r"data\[0\].column", "a column that does not exist",
         {"data": [{"kind": "columns", "path": "recap/demo/flags/*.tar", "column": "/nowhere"}]}, "neither a run"),
    Case("sft", r"data\[0\]", "a column that lacks tars", {}, "lacks", column("column")),
    Case("sft", r"data\[0\]", "tars that do not exist", {"data": [{"kind": "columns", "path": "/nowhere/*.tar"}]},
         "nowhere"),
    Case("sft", r"data\[0\]", "gzipped tars", {}, "gzipped",
         lambda folder: {"data": [{"kind": "columns", "path": str(gzipped("a.tar.gz")(folder)["data__shards"][0])}]}),
    Case("sft", "attention", "a misspelt kernel", {"attention": "flash_attention2"}, "Did you mean flash_attention_2"),
    Case("sft", "lora.rank", "adapters without the package peft", {"lora": {"rank": 4}}, "pip install peft"),
    Case("sft", "make", "a maker without its module", {"model": "", "make": "recap.no.demo"}, "no module 'recap.no"),
    Case("sft", "model", "a checkpoint of another type", {}, "'qwen2_vl' cannot be fine-tuned",
         model(config__json={"model_type": "qwen2_vl"})),
    Case("sft", "model", "a checkpoint that cannot caption (processor, sizes, weights)", {}, "no image processor",
         model(preprocessor_config__json=None, processor_config__json=None)),
    Case("sft", "model", "no fast tokenizer", {}, "no tokenizer.json",
         lambda folder: model(tokenizer__json=None, vocab__json="{}")(folder)),
    Case("sft", "model", "a tokenizer that cannot be read", {}, "cannot be read", model(tokenizer__json="{")),
    Case("sft", "model", "a tokenizer without a mark for images", {}, "no token '<image>'", renamed("<image>")),
    Case("sft", "template", "a template that ends with eos, a tokenizer that names none", {"template": "vicuna"},
         "names none", model(tokenizer_config__json={"eos_token": None}, special_tokens_map__json="{}")),
    Case("sft", "template", "an end mark that is no token", {"template": "llama-3"}, "no single token"),
    Case("sft", "max_tokens", "no room for words", {"max_tokens": 16}, "an image alone takes 64"),
    Case("sft", "max_tokens", "samples longer than the language model", {"max_tokens": 5000}, "positions of the lang"),
]  # fmt: skip

JOINED: list[tuple[str, str, Changes, str]] = [
    ("data.streams", "no streams, or windows of no blocks", {"data__streams": 0}, "is less than 1"),
    ("data.streams", "streams that do not divide the batch", {"data__streams": 5}, "do not divide the batch"),
    ("data.streams", "ranks that do not divide the streams", {"data__streams": 3}, "do not divide among 2 ranks"),
    ("data.size", "un-indexed tars without a number of samples", {"data__indexed": False}, "how many samples"),
    ("data.keep", "a selection for un-indexed tars",
     {"data__keep": "runs/kept", "data__indexed": False, "data__size": 9}, "known by the index"),
    ("column", "a column that is not described", {"text__weights": {"other": 1.0}}, "not among data.columns"),
    ("data.columns.re_caption", "a column of no place, or of two",
     {"data__columns": {"org_caption": {"member": "txt"}, "re_caption": {}}}, "exactly one of run"),
    ("data.columns.re_caption", "an unknown rule for missing shards",
     {"data__columns": {"org_caption": {"member": "txt"}, "re_caption": {"member": "txt", "missing": "skip"}}},
     "Write error or null"),
    ("column", "a column that does not exist",
     {"data__columns": {"org_caption": {"member": "txt"}, "re_caption": {"folder": "/nowhere"}}}, "does not exist"),
    ("data", "gzipped tars, whatever they are called", {}, "is gzipped"),
    ("text.weights", "no weights", {"text__weights": {}}, "write a weight"),
    ("text.texts", "no text", {"text__texts": 0}, "less than 1"),
    ("text.sub_captions.pick", "an unknown choice of sentences", {"text__sub_captions": {"pick": "last"}},
     "first or random"),
    ("text.sub_captions", "sentences of no number", {"text__sub_captions": {"count": 0}}, "at least 1"),
    ("text.block", "an unknown choice of tokens", {"text__block": {"pick": "middle"}}, "pick is first"),
    ("text.fallback", "an empty name", {"text__fallback": ["+"]}, "empty name"),
    ("text.prefix", "a prefix for no column", {"text__prefix": {"other": "[ALT]"}}, "no text comes from"),
    ("train.workers", "several workers", {"train__workers": 2}, "each would read all windows"),
]  # fmt: skip


def joined(trainer: str) -> list[Case]:
    packed: dict[str, Any] = {"gzipped tars, whatever they are called": gzipped("a.tar")}
    of_clip = ("text.texts", "text.prefix", "text.block") if trainer == "dit" else ()
    return [
        Case(trainer, key, what, changes, says, packed.get(what))
        for key, what, changes, says in JOINED if key not in of_clip
    ]  # fmt: skip


RETRIEVE = {"task": "retrieve", "folder": "recap"}
CLIP = [
    Case("clip", "model.architecture", "an unknown architecture", {"model__architecture": "clip"}, "Write recap or hf"),
    Case("clip", "model.activation", "an activation that it does not have", {"model__activation": "relu"},
         "Write gelu"),
    Case("clip", "model.vision", "an unknown size", {"model__vision": "XL"}, "WIDTHxLAYERSxHEADS"),
    Case("clip", "model.text", "a width that the heads do not divide", {"model__text": "32x2x3"}, "among 3 heads"),
    Case("clip", "stages", "no stage", {"stages": []}, "empty"),
    Case("clip", "train.samples", "a key of `train` that every stage has its own of", {"train__samples": 9},
         "has no effect"),
    Case("clip", "model.tokenizer", "a tokenizer that does not exist", {"model__tokenizer": "/nowhere"},
         "make a tokenizer of this training's texts"),
    Case("clip", r"stages\[0\].image", "patches that do not divide the image", {"model__patch": 7}, "Write 14 or 21"),
    Case("clip", r"stages\[0\].keep_patches", "no patches", {"stages": [{"image": 16, "keep_patches": 0}]}, "a share"),
    Case("clip", r"stages\[0\].tokens", "more tokens than the context", {"stages": [{"image": 16, "tokens": 13}]},
         "more than model.context"),
    Case("clip", "loss.kind", "an unknown loss", {"loss": {"kind": "hinge"}}, "'hinge' is unknown"),
    Case("clip", "loss.kind", "several texts for a loss of one", {"text__texts": 3}, "takes one text an image"),
    Case("clip", "loss.grouping", "patch features of a CLIPModel",
         {"model__architecture": "hf", "loss": {"grouping": 0.5}}, "architecture=recap"),
    Case("clip", "loss.grouping_threshold", "no share", {"loss": {"grouping": 1, "grouping_threshold": 2}}, "0 to 1"),
    Case("clip", "loss.grouping_threshold", "no grouping loss", {"loss": {"grouping_threshold": 0.5}}, "write loss.gr"),
    Case("clip", "train.evaluate_every", "`evaluate` without it, or the reverse", {"train__evaluate_every": 48},
         "go together"),
    Case("clip", "evaluate.x", "an unknown task", {"evaluate": {"x": {"task": "judge"}}}, "Write retrieve, classify"),
    Case("clip", "evaluate.x", "attribute without `json`", {"evaluate": {"x": {"task": "attribute"}}}, "wants json"),
    Case("clip", "evaluate.x", "classify without classes", {"evaluate": {"x": {"task": "classify"}}}, "wants shards"),
    Case("clip", "evaluate.x", "retrieve without images", {"evaluate": {"x": {"task": "retrieve"}}}, "wants karpathy"),
    Case("clip", "evaluate.x", "a batch of none", {"evaluate": {"x": RETRIEVE | {"batch": 0}}}, "less than 1"),
    Case("clip", "evaluate.x", "files that do not exist", {"evaluate": {"x": RETRIEVE | {"folder": "/nowhere"}}},
         "/nowhere does not exist"),
    Case("clip", "model.start", "weights or a tokenizer that do not exist", {"model__start": "/nowhere"}, "no such f"),
    Case("clip", "model.tokenizer", "a tokenizer that cannot be read", {}, "cannot be read", unreadable_tokenizer),
    Case("clip", "model.tokenizer", "no CLS token (recap), no BOS or EOS (hf)", {}, "has no EOS token",
         tokenizer("eos_token")),
    Case("clip", "model.tokenizer", "an end token at which transformers does not pool", {},
         "has the id 2", end_of_id_two),
    Case("clip", "model.vocabulary", "fewer rows than tokens", {"model__vocabulary": 20}, "Write at least 27"),
    Case("clip", "text.prefix.org_caption", "a prefix that is no token", {"text__prefix": {"org_caption": "[NEW]"}},
         "no token"),
]  # fmt: skip

DIT = [
    Case("dit", "model.size", "an unknown size", {"model__size": "B"}, "Write S, B, L, XL"),
    Case("dit", "model.size", "a width that the heads do not divide", {"model__size": "30x2x4/4"}, "among 4 heads"),
    Case("dit", "model.text_encoder", "no text encoder", {"model__text_encoder": ""}, "missing"),
    Case("dit", "model.text_encoder", "folders that do not exist", {"model__text_encoder": "/nowhere"},
         "no such folder"),
    Case("dit", "text_encoder", "a folder without weights", {}, "not the folder of a text encoder",
         encoder(weights=False)),
    Case("dit", "model.text_encoder", "a folder that is no model's", {}, "has no config.json", encoder()),
    Case("dit", "model.text_encoder", "an encoder that is neither CLIP nor T5", {}, "Name a CLIP or a T5",
         encoder(model_type="bert")),
    Case("dit", "model.context", "more tokens than the encoder takes", {"model__context": 20}, "Write at most 16"),
    Case("dit", "model.context", "no place for words", {"model__context": 2}, "leave no place for words"),
    Case("dit", "vae", "a folder that is no VAE", {"model__vae": "recap/demo/captioner"}, "Name an image VAE"),
    Case("dit", "model.image", "patches that do not divide the image", {"model__image": 18}, "Write 16 or 20"),
    Case("dit", "objective.kind", "an unknown objective", {"objective__kind": "vp"}, "Write flow or ddpm"),
    Case("dit", "objective.posterior", "an unknown posterior", {"objective__posterior": "mode"}, "sample or mean"),
    Case("dit", "objective.kind", "settings of the other objective", {"objective__min_snr": 5.0}, "belong to ddpm"),
    Case("dit", "objective.text_dropout", "all texts dropped", {"objective__text_dropout": 1.0}, "not a share"),
    Case("dit", "model.vae", "latents without their VAE", {"data__latents": "latents"}, "missing"),
    Case("dit", "micro_batch", "a negative number", {"micro_batch": -1}, "is negative"),
    Case("dit", "data.embeddings", "a text without embeddings beside one with",
         {"data__embeddings": {"re_caption": "x"}},
         "of text.weights has none"),
    Case("dit", "text.texts", "several texts an image", {"text__texts": 2}, "Write 1"),
    Case("dit", "text", "keys that are CLIP's", {"text__prefix": {"org_caption": "[ALT]"}}, "are CLIP's"),
    Case("dit", "data.embeddings", "embeddings of parts of texts",
         {"data__embeddings": {"org_caption": "x"}, "text__weights": {"org_caption": 1.0},
          "text__sub_captions": {"columns": ["org_caption"]}}, "of whole texts"),
    Case("dit", "grid.prompts", "pictures without `train.evaluate_every`, or the reverse",
         {"train__evaluate_every": 48},
         "Write both, or neither"),
    Case("dit", "model.start", "a start that is no DiT", {}, "config.json cannot be read", start()),
    Case("dit", "model.start", "a start of another shape", {},
         "has num_layers 9, this config makes 2", start(num_layers=9)),
    Case("dit", "data.latents", "a field that holds no bytes", {}, "has no binary field 'key'",
         stored("latent", (2, 8, 8, 8), LATENTS, field="key")),
    Case("dit", "data.latents", "latents of another VAE", {}, "is of the VAE 0123",
         stored("latent", (2, 8, 8, 8), LATENTS, vae="0123")),
    Case("dit", "data.latents", "latents of another size", {},
         "asks for float16", stored("latent", (2, 8, 4, 4), LATENTS)),
    Case("dit", "data.latents", "means where a posterior is sampled", {}, "holds means",
         stored("latent", (2, 4, 8, 8), LATENTS, kind="mean")),
    Case("dit", "data.latents", "latents of no mirrored images", {}, "no mirrored images",
         stored("latent", (1, 8, 8, 8), LATENTS)),
    Case("dit", "data.embeddings", "values that are something else", {}, "no safetensors blob with 'states'",
         stored("latent", (4, 32), STATES)),
    Case("dit", "data.embeddings", "embeddings of another encoder", {}, "of the encoder 0123",
         stored("states", (4, 32), STATES, encoder="0123")),
    Case("dit", "data.embeddings", "texts that another tokenizer split", {}, "another tokenizer",
         stored("states", (4, 32), STATES, tokenizer="0123")),
    Case("dit", "data.embeddings", "texts that were cut elsewhere", {}, "were cut at 8 tokens",
         stored("states", (4, 32), STATES, context="8")),
]  # fmt: skip

LISTS = {"Every training": EVERY, "Fine-tuning": SFT, "CLIP": CLIP + joined("clip"), "DiT": DIT + joined("dit")}

HEAD = """# What a launch of a training checks

Before anything runs, `python -m hpc.launch` looks at all that the config and small files tell, and refuses what will
not work: the key, why, and what to write. Each line has a test (`tests/train/test_launch_checks.py`), which also sees
that no refusal in the code is missing here. A dry run, and a launch of new work on Slurm, lay the model out besides (in
a process of its own, without weights) and refuse `trainable`, `rates` and `lora.targets` that match no parameter
(`tests/train/test_groups.py`), and a CLIP's `model.start` whose shapes are not those of the config
(`tests/clip/test_weights.py`). What every job checks (keys, cluster, paths, inputs) is not listed.
"""


def as_markdown() -> str:
    parts = [HEAD]
    for title, cases in LISTS.items():
        rows = [f"| `{case.key}` | {case.what} |".replace("\\", "") for case in cases]
        parts.append("\n".join([f"## {title}", "", "| key | what is refused |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
