"""The table of parameters that a dry run prints is what the optimizer does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hpc import config as configs
from hpc import launch
from hpc.base.errors import Exit, UserError
from recap.train.groups import Group, groups, lines
from recap.train.state import optimizer_of
from tests.clip.models import tiny
from tests.clip.test_training import tree as clip_tree
from tests.dit.conftest import tree as dit_tree
from tests.dit.conftest import world  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]


def trainer(config: dict[str, Any]) -> Any:
    return configs.check(json.loads(json.dumps({**config, "cluster": {"kind": "local"}})), "test").trainer()


def sft_tree(**changes: Any) -> dict[str, Any]:
    """Of the shipped captioner; nothing is read but its config."""
    return {
        "trainer": "recap.sft.trainer.SftTrainer", "model": str(ROOT / "recap/demo/captioner"), "name": "sft",
        "trainable": ["multi_modal_projector", "language_model"], "train": {"weight_decay": 0.1, "lr": 1e-3}, **changes,
    }  # fmt: skip


def case(name: str, folder: Path) -> Any:
    if name == "clip":
        return trainer(clip_tree(folder, loss={"kind": "sigmoid"}))
    if name == "hf clip":
        model = {**vars(tiny(folder, "hf")), "start": ""}
        return trainer(clip_tree(folder, model=model))
    if name == "dit":
        return trainer(dit_tree(folder, train__weight_decay=0.05))
    lora = {"rank": 4, "targets": r".*language_model.*\.(q|v)_proj"}
    changes = {"lora": lora, "trainable": ["multi_modal_projector"]} if name == "adapters" else {}
    return trainer(sft_tree(rates={r"^model\.multi_modal_projector": 2e-5}, **changes))


@pytest.mark.parametrize("name", ["sft", "adapters", "clip", "hf clip", "dit"])
def test_the_table_is_the_optimizers(world: Path, name: str) -> None:  # noqa: F811
    made = case(name, world)
    layouts = list(made.layouts())
    assert len(layouts) == (2 if "clip" in name else 1)
    for layout in layouts:
        found = groups(layout)
        wanted: Counter[tuple[float, float]] = Counter()
        optimizer = optimizer_of(layout.module, layout, layout.settings)
        for group in optimizer.param_groups:
            size = sum(p.numel() for p in group["params"])
            wanted[layout.settings.lr * group["rate"], group["weight_decay"]] += size
        told: Counter[tuple[float | None, float]] = Counter()
        for row in found:
            told[row.lr, row.weight_decay] += row.parameters
        frozen = told.pop((None, 0.0), 0)
        assert told == wanted
        assert frozen + sum(wanted.values()) == sum(p.numel() for p in layout.module.parameters())
        assert (frozen > 0) is (name != "hf clip")  # towers, an encoder, positions of sines
        names = {row.name for row in found}
    expected = {
        "sft": {"vision_tower", "multi_modal_projector: kernels", "language_model: embeddings"},
        "adapters": {"language_model", "language_model: adapters", "multi_modal_projector: norms, biases"},
        "clip": {"visual: kernels", "logit_scale", "logit_bias"},
        "hf clip": {"vision_model: kernels", "text_model: embeddings", "logit_scale"},
        "dit": {"transformer_blocks: kernels", "text_encoder"},
    }  # fmt: skip
    assert expected[name] <= names, names


def test_how_a_table_reads() -> None:
    found = [Group("lm_head: kernels", 5000, 2e-5, 0.1), Group("vision_tower", 70, None, 0.0)]
    assert lines("stage 0-112px", found) == [
        "parameters, stage 0-112px                        5,070       lr   decay",
        "  lm_head: kernels                               5,000    2e-05     0.1  trained",
        "  vision_tower                                      70        -       -  frozen",
    ]


def test_what_matches_nothing_is_refused() -> None:
    for change, word in (
        ({"trainable": ["nonsense"]}, "trainable.*'nonsense' matches no parameter"),
        ({"rates": {"vision_tower": 1e-5}}, "rates.*'vision_tower' matches none of the .* that are trained"),
        ({"lora": {"rank": 4, "targets": "nonsense"}}, "lora.targets"),
    ):
        with pytest.raises(UserError, match=word):
            list(trainer(sft_tree(**change)).layouts())


@pytest.mark.slow
def test_a_dry_run_prints_it(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, in a process of its own; a checkpoint that is to be made is made for it, and left nowhere."""
    monkeypatch.chdir(ROOT)
    assert launch.main(["configs/sft/demo.yaml", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "parameters                                   1,911,584       lr   decay" in said
    assert "  vision_tower: kernels                        811,008   0.0015    0.05  trained" in said
    assert launch.main(["configs/sft/own_tars.yaml", "trainable=[nonsense]", "--dry-run"]) == Exit.USAGE
    assert "'nonsense' matches no parameter" in capfd.readouterr().err
