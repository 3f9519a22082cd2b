"""A config over another: groups of keys are merged, all else is replaced, and mistakes are told of the right file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc import config as configs
from hpc.base.errors import UserError

BASE = """
trainer: recap.clip.trainer.ClipTrainer
name: below
model: {vision: B, text: base}
text: {weights: {org_caption: 0.8, re_caption: 0.2}, texts: 1}
stages: [{image: 112, samples: 10}, {image: 224, samples: 5}]
cluster: {kind: slurm, time: "10"}
"""


def loaded(folder: Path, text: str, base: str = BASE) -> configs.Config:
    (folder / "shared").mkdir(exist_ok=True)
    (folder / "shared/base.yaml").write_text(base)
    (folder / "top.yaml").write_text("base: shared/base.yaml\n" + text)
    return configs.load(folder / "top.yaml", ["train.seed=4"])


def test_groups_are_merged_and_values_replaced(tmp_path: Path) -> None:
    made = loaded(
        tmp_path, "name: top\nmodel: {text: large}\ntext: {weights: {re_caption: 1.0}}\nstages: [{image: 64}]"
    )
    assert (made.run.name, made.run.cluster.kind, made.work.train.seed) == ("top", "slurm", 4)
    assert (made.work.model.vision, made.work.model.text) == ("B", "large")
    assert made.work.text.weights == {"re_caption": 1.0}  # a share of the base's would be a silent mix
    assert [stage.image for stage in made.work.stages] == [64]


@pytest.mark.parametrize(
    ("text", "base", "word"),
    [
        ("name: top", BASE.replace("vision", "vison"), r"shared/base.yaml: `model.vison`: unknown key"),
        ("name: top", BASE + "stagez: []", r"shared/base.yaml: `stagez`: unknown key"),
        ("nam: top", BASE, r"top.yaml: `nam`: unknown key"),
        ("name: top", "base: ../top.yaml", r"leads back to this file"),
        ("name: top", "base: nowhere.yaml", r"nowhere.yaml does not exist. It is the `base` of .*shared/base.yaml"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, base: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        loaded(tmp_path, text, base)


def test_shipped_sweep() -> None:
    """Table 3: eleven shares of the original captions, and both joined."""
    from hpc.gang.sweep import arms

    made = arms(configs.load(Path(__file__).parents[2] / "configs/clip/sweep_p.yaml", []))
    shares = [c.work.text.weights.get("org_caption", 0.0) for c in made.values()]
    assert shares[:11] == [n / 10 for n in range(11)] and list(made)[11:] == ["concat"]
    assert all(sum(c.work.text.weights.values()) == 1.0 for c in made.values())
