"""Golden identities: that of every config under configs/, so that no change of code moves one unseen.

What models and runs are made of is replaced by fixed strings: the files of one stand-in folder, and one identity of
every column that a run has made. An identity that is meant to move is written anew, and named in CHANGELOG.md:

    python -m tests.config.test_identities
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml

from hpc import config as configs
from hpc.gang import sweep
from hpc.pipeline import definition as pipeline
from recap.select.statistics_file import Shared, Top

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "identities.json"
NOT_JOBS = ("cluster", "prompts")  # folders of configs/ whose files are parts of others
MODELS = {  # every key that names the folder of a model, by what the config names
    "recap.caption.operator.CaptionOperator": ["captioner.model"],
    "recap.clip.trainer.ClipTrainer": ["model.tokenizer"],
    "recap.dit.latents.LatentsOperator": ["vae"],
    "recap.dit.sample_job.SampleOperator": ["model"],
    "recap.dit.text_embeddings.TextEmbeddingsOperator": ["text_encoder"],
    "recap.generate.operator.GenerateOperator": ["writer.model"],
    "recap.score.operator.ScoreOperator": [
        f"scorers.{kind}.*.model"
        for kind in (
            *("clip", "features", "self_retrieval", "head", "itm", "logprob"),
            *("similarity", "bert_score", "nli", "reward"),
        )
    ],
    "recap.dit.trainer.DitTrainer": ["model.vae", "model.text_encoder", "model.start"],
    "recap.sft.trainer.SftTrainer": ["model"],
}
STAND_IN = {
    "config.json": json.dumps(
        {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 8, 8, 8], "hidden_size": 8}
    ),
    "model.safetensors": "weights",
    "tokenizer.json": "tokenizer",
    "recap_dit.json": json.dumps({"objective": "ddpm", "context": 77, "learned_sigma": True}),
    "transformer/config.json": "{}",
    "transformer/diffusion_pytorch_model.safetensors": "weights",
}


def identities(folder: Path) -> dict[str, dict[str, Any]]:
    """Identity and version by config, arm and stage. folder: an empty one, for the stand-in."""
    for name, content in STAND_IN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    column = SimpleNamespace(identity="a column's identity")
    published = mock.patch("recap.data.samples.Published", lambda run: column)
    columns = mock.patch("recap.data.columns.Published", lambda run: column)
    theirs = mock.patch("recap.join.operator.Theirs", lambda config: SimpleNamespace(digest="their files'", by=["key"]))
    loadable = mock.patch("recap.engine.loadable.check")  # the stand-in is no checkpoint that captions
    edges = mock.patch("recap.select.rules.open_statistics", lambda path: _Edges())
    told = mock.patch("recap.score.model_folder.json_of", _told)
    head = mock.patch.multiple("recap.score.head", **_HEAD)
    packages: Any = {"tagger": lambda path: folder, "norms_file": lambda path: folder / "config.json"}
    nouns = mock.patch.multiple("recap.generate.nouns", **packages)
    with published, columns, theirs, edges, loadable, told, head, nouns:
        return {name: _facts(config, folder) for name, config in shipped()}


_HEAD: Any = {
    "layers_of": lambda *given: [(np.zeros((1, 512)), np.zeros(1))], "width_of": lambda *given: 512,
    "file_digest": lambda path: "a head's digest",
}  # fmt: skip


def _told(path: Path, key: str) -> dict[str, Any]:
    """The config.json that a scorer expects."""
    labels = {"0": "entailment", "1": "contradiction"} if key.startswith("scorers.nli") else {"0": "reward"}
    kinds = ["BertForSequenceClassification", "BlipForImageTextRetrieval"]
    return {"architectures": kinds, "id2label": labels, "model_type": "llava", "num_hidden_layers": 24}


def shipped() -> Iterator[tuple[str, configs.Config]]:
    """Every job that a file under configs/ describes, by the file's name and that of the arm or the stage."""
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        name = str(path.relative_to(ROOT))
        if path.parent.name in NOT_JOBS:
            continue
        if pipeline.is_pipeline(path):
            stages = pipeline.load(path, ["cluster=local"]).stages.values()
            yield from ((f"{name} {stage.name}", stage.config) for stage in stages if stage.config is not None)
            continue
        config = configs.load(path, ["cluster=local"])
        if config.run.sweep:
            yield from ((f"{name} {arm}", made) for arm, made in sweep.arms(config).items())
        else:
            yield name, config
    yield from asked_in_formats()


def asked_in_formats() -> Iterator[tuple[str, configs.Config]]:
    """A caption job with each shipped bank of prompts: `{alt}`, several formats, a format's own budget and limit."""
    for path in sorted((ROOT / "configs" / "prompts").glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        if "prompts" in settings:
            changes = {f"captioner.{key}": value for key, value in settings.items()}
            config = configs.load(ROOT / "configs" / "caption" / "demo.yaml", ["cluster=local"])
            yield f"captioner: prompts/{path.name}", configs.changed(config, changes, path.name)
    config = configs.load(ROOT / "configs" / "caption" / "demo.yaml", ["cluster=local"])
    two = {"plain": {"text": "Describe it."}, "alt": {"text": "It is {alt}.", "alt_tokens": 32, "weight": 2.0}}
    changes = {"captioner.prompts": two, "captioner.formats": "all", "captioner.template": "{image}{prompt}"}
    yield "captioner: two formats", configs.changed(config, changes, "two formats")


def _facts(config: configs.Config, folder: Path) -> dict[str, Any]:
    path = config.run.operator or config.run.trainer
    for key in MODELS.get(path, ()):
        *groups, name = key.split(".")
        for settings in functools.reduce(_parts, groups, [config.work]):
            if getattr(settings, name):
                setattr(settings, name, str(folder))
    for form in vars(config.work).get("formats", {}).values():
        if form.examples is not None:  # a file of this tree, wherever the work is launched from
            form.examples.file = str(ROOT / Path(form.examples.file).relative_to(Path.cwd()))
    work = config.trainer() if config.is_gang else config.operator()
    return {"work": path, "version": type(work).version, "identity": configs.identity(config, work)}


def _parts(found: list[Any], name: str) -> list[Any]:
    """One step of a key's path; `*` stands for all parts of a mapping."""
    return [part for one in found for part in (one.values() if name == "*" else [getattr(one, name)])]


class _Edges:
    """In the place of a statistics file, which would be of a run."""

    digest = "a statistics file's digest"

    def check(self, *run: Any) -> None: ...

    def top(self, *asked: Any) -> Top:
        return Top(0.5, 1, 1)

    def shared(self, *asked: Any) -> Shared:
        return Shared(np.zeros(0, np.int64), np.zeros(0, np.int64), 0)

    def edges(self, *asked: Any) -> list[float]:
        return [0.5]


def test_no_identity_of_a_shipped_config_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none depends on where the work is launched from, or on where the models lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    found = identities(tmp_path / "model")
    golden = json.loads(GOLDEN.read_text())
    moved = {name for name in golden.keys() | found.keys() if golden.get(name) != found.get(name)}
    assert not moved, (
        f"moved: {sorted(moved)}. If that is meant: python -m tests.config.test_identities, and CHANGELOG.md"
    )


def write() -> None:
    """The golden file, from the code as it is."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=f"{folder}/cache"):
        (Path(folder) / "model").mkdir()
        found = identities(Path(folder) / "model")
    lines = (f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in found.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
