"""What can be known at launch is said at launch: every check of every trainer, and the docs' list of them."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib.util
import json
import shutil
import traceback
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from hpc import config as configs
from hpc.base.errors import UserError
from tests.clip.test_training import tree as clip_tree
from tests.dit.conftest import tree as dit_tree
from tests.dit.conftest import world as made_world  # noqa: F401 - a fixture
from tests.train.launch_checks import LISTS, Case, as_markdown

ROOT = Path(__file__).resolve().parents[2]
CASES = [case for cases in LISTS.values() for case in cases]
CHECKED = [
    "recap/train/settings.py", "recap/sft/settings.py", "recap/sft/startable.py", "recap/sft/tars.py",
    "recap/clip/settings.py", "recap/clip/trainer.py", "recap/clip/tokenizer_files.py", "recap/dit/settings.py",
    "recap/dit/trainer.py", "recap/dit/startable.py", "recap/dit/stored.py", "recap/dit/encoder_files.py",
    "recap/data/samples.py", "recap/text_policy.py",
]  # fmt: skip
NOT_OF_LAUNCHES = {
    "check_pooling": "of CLIPs of others, which evaluations open",
    "__init__": "of tars without a sample, counted later",
    "shared_input": "of ranks that wait", "_fill": "of batches",
}  # fmt: skip


def tree(world: Path, trainer: str) -> dict[str, Any]:
    """A config that can be launched on two ranks."""
    if trainer == "clip":
        return clip_tree(world) | {"cluster": {"kind": "local"}}
    if trainer == "dit":
        return dit_tree(world)
    return {
        "trainer": "recap.sft.trainer.SftTrainer", "name": "sft", "model": str(ROOT / "recap/demo/captioner"),
        "cluster": {"kind": "local"}, "template": "short", "trainable": ["multi_modal_projector"], "max_tokens": 256,
        "data": [{"kind": "world", "path": "recap.worlds.flags.sample", "samples": 9}], "train": {"batch": 8},
    }  # fmt: skip


class Launchable:
    """A trainer with a config that can be launched, checked once; of each case the parts that it changes are made anew:
    the whole would take a minute."""

    def __init__(self, world: Path, name: str) -> None:
        self.tree = tree(world, name)
        trainer: Any = configs.check(copied(self.tree), "test").trainer()
        trainer.check(2)
        self.kind: Any = type(trainer)
        self.config: Any = trainer.config

    def check(self, changes: dict[str, Any]) -> None:
        changed = apply(copied(self.tree), changes)
        config, types = copy.copy(self.config), get_type_hints(self.kind.Config)
        for field in dataclasses.fields(self.kind.Config):
            if any(key.split("__")[0] == field.name for key in changes):
                given = dataclasses.field(default=field.default, default_factory=field.default_factory)
                part = dataclasses.make_dataclass("Part", [(field.name, types[field.name], given)])
                made = configs.structured(part, {field.name: changed[field.name]}, "test")
                setattr(config, field.name, getattr(made, field.name))
        self.kind(config).check(2)


def copied(tree: dict[str, Any]) -> Any:
    return json.loads(json.dumps(tree))


def apply(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        place, keys = config, key.split("__")
        if keys[0] == "data" and len(keys) > 1 and isinstance(config["data"], list):
            continue  # a fine-tuning has no streams
        for part in keys[:-1]:
            place = place.setdefault(part, {})
        place[keys[-1]] = value
    return config


@pytest.fixture(scope="module")
def world(made_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder of the name that cases know."""
    folder = tmp_path_factory.mktemp("checks") / "world"
    shutil.copytree(made_world, folder)
    return folder


def refused(case: Case, trainer: Launchable, world: Path) -> UserError:
    place = world.parent / str(len(list(world.parent.iterdir())))
    place.mkdir()
    changes = case.changes | (case.spoil(place) if case.spoil else {})
    with pytest.raises(UserError, match=f"{case.key}.*{case.says}".replace("(", r"\(")) as found:
        trainer.check(changes)
    return found.value


def test_every_refusal(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of the list is refused with its key and reason, and no refusal of the checks is not on the list."""
    monkeypatch.chdir(ROOT)
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else installed(name))
    hit: set[tuple[str, int]] = set()
    problems = []
    trainers = {name: Launchable(world, name) for name in ("sft", "clip", "dit")}
    for case in CASES:
        for trainer in [case.trainer] if case.trainer else ["sft", "clip", "dit"]:
            try:
                error = refused(case, trainers[trainer], world)
            except (AssertionError, pytest.fail.Exception) as wrong:
                problems.append(f"{trainer} {case.key}: {case.what}: {str(wrong)[:300]}")
                continue
            while error is not None:
                frames = traceback.extract_tb(error.__traceback__)
                hit |= {(str(Path(f.filename).relative_to(ROOT)), f.lineno or 0) for f in frames
                        if f.filename.startswith(str(ROOT / "recap"))}  # fmt: skip
                error = error.__cause__  # type: ignore[assignment]
    assert not problems, "\n".join(problems)
    missing = [f"{file}:{first} {name}" for file in CHECKED for name, first, last in refusals(ROOT / file)
               if not any((file, line) in hit for line in range(first, last + 1))
               and name not in NOT_OF_LAUNCHES]  # fmt: skip
    assert not missing, "on no line of the list:\n" + "\n".join(missing)


def refusals(file: Path) -> list[tuple[str, int, int]]:
    """(function, first line, last line) of each `raise UserError` and `refuse(...)` of a module."""
    found = []
    for function in ast.walk(ast.parse(file.read_text())):
        if not isinstance(function, ast.FunctionDef) or function.name == "refuse":
            continue
        for node in ast.walk(function):
            raised = isinstance(node, ast.Raise) and "UserError(" in ast.unparse(node)
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "refuse"
            if isinstance(node, (ast.Raise, ast.Call)) and (raised or called):
                found.append((function.name, node.lineno, node.end_lineno or node.lineno))
    return found


def test_the_docs_list_them() -> None:
    made = "run: python -m tests.train.launch_checks > docs/training_checks.md"
    assert (ROOT / "docs/training_checks.md").read_text() == as_markdown(), made
