"""Stages that are made once for each of some names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.base.errors import Exit, UserError
from hpc.pipeline.definition import load
from tests.support.jobs import inline

SAY = {"command": ["echo", "x"]}
STAGES: dict[str, Any] = {
    "judged-%": {"command": ["judge", "${%}", "--name", "%", "100%%"]},
    "battle-%1-%2": {"command": ["fight", "${%1}", "${%2}", "${judged-%1}", "%1:%2"]},
    "page": {"command": ["page", "%=${judged-%}", ["--run", "${%}"], "%1:%2=${battle-%1-%2}", "end"]},
}


def write(folder: Path, stages: dict[str, Any] = STAGES, each: Any = None) -> str:
    each = {"old": "runs/old", "new": SAY, "third": "/abs"} if each is None else each
    tree = {"name": "p", "runs": str(folder), "cluster": "local", "for_each": each, "stages": stages}
    (folder / "p.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(folder / "p.yaml")


def test_stages_are_written_out(tmp_path: Path) -> None:
    made = load(write(tmp_path), [])
    here, old = str(tmp_path / "p"), str(Path("runs/old").absolute())
    assert sorted(made.stages) == sorted(
        ["new", "judged-old", "judged-new", "judged-third", "battle-old-new", "battle-old-third", "battle-new-third",
         "page"]
    )  # fmt: skip
    assert made.stages["judged-old"].command == ("judge", old, "--name", "old", "100%")
    assert made.stages["judged-new"].command[1] == f"{here}/new" and made.stages["judged-new"].needs == ("new",)
    assert made.stages["battle-new-third"].command == (
        "fight", f"{here}/new", "/abs", f"{here}/judged-new", "new:third"
    )  # fmt: skip
    assert made.stages["page"].command == (
        "page", f"old={here}/judged-old", f"new={here}/judged-new", f"third={here}/judged-third",
        "--run", old, "--run", f"{here}/new", "--run", "/abs",
        f"old:new={here}/battle-old-new", f"old:third={here}/battle-old-third", f"new:third={here}/battle-new-third",
        "end",
    )  # fmt: skip
    assert set(made.stages["page"].needs) == set(made.stages) - {"page"}
    (tmp_path / "p" / "again").mkdir(parents=True)
    again = {"name": "p", "runs": str(tmp_path), **made.tree}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again, sort_keys=False))
    assert load(tmp_path / "again.yaml", []).stages["page"].command == made.stages["page"].command


def test_names_come_and_go_on_the_command_line(tmp_path: Path) -> None:
    made = load(write(tmp_path), ["for_each.fourth=runs/x", "for_each.old=null", "judged-%.rate=3"])
    assert {"judged-fourth", "battle-third-fourth"} <= set(made.stages) and "judged-old" not in made.stages
    assert {made.stages[name].rate for name in made.stages if name.startswith("judged")} == {3}
    one = load(write(tmp_path, each={"a": "runs/a"}), [])
    assert list(one.stages) == ["judged-a", "page"] and one.stages["page"].command[-1] == "end"


def test_percent_signs_elsewhere_are_text(tmp_path: Path) -> None:
    made = load(write(tmp_path, {"s": {"command": ["date", "+%s", "50%"]}}, {}), [])
    assert made.stages["s"].command == ("date", "+%s", "50%")


@pytest.mark.parametrize(
    ("stages", "each", "message"),
    [
        ({"a-%": SAY}, {}, "which is empty"),
        ({"a-%": SAY}, {"b c": "runs/x"}, "cannot be a name"),
        ({"a-%": SAY}, {"b": 3}, "expected a directory, or a stage"),
        ({"a-%": {"command": ["x", "%1"]}}, {"b": "runs/x"}, "expected % here"),
        ({"a-%1-%2": {"command": ["x", "${%}"]}}, {"b": "runs/x", "c": "runs/y"}, "expected %1 or %2 here"),
        ({"a-%": SAY, "a-b": SAY}, {"b": "runs/x"}, "two stages 'a-b'"),
        ({"b": SAY}, {"b": SAY}, "two stages 'b'"),
        ({"s": {"command": ["x", "${other-%}"]}}, {"b": "runs/x"}, "${other-b} is no stage"),
    ],
)
def test_what_cannot_be_is_said_at_launch(tmp_path: Path, stages: Any, each: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(write(tmp_path, stages, each), [])
    assert message in str(error.value)


def test_a_dry_run_has_a_line_for_each(tmp_path: Path) -> None:
    said = inline("hpc.launch", write(tmp_path), "--dry-run")
    assert said.returncode == Exit.COMPLETE, said.stderr
    assert "battle-old-third" in said.stdout and "judged-new" in said.stdout
