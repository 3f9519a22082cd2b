"""The house: imports go upward only, no circle, files of one sitting, functions of one screen."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES, FUNCTION = 400, 60

# Ground floor first. A module may import from its own floor's package and from all floors below; packages of one floor
# do not know one another. A name stands for a module or for a whole package.
HPC = [
    ["base"],
    ["operator", "trainer"],
    ["config"],
    ["run"],
    ["slurm"],
    ["launching"],
    ["map"],
    ["gang"],
    ["kinds"],
    ["gate"],
    ["pipeline"],
    ["any_status", "relaunch"],
    ["overview", "drilling"],
    ["drill", "status", "launch", "logs", "rerun", "verify", "cancel", "clean", "keys", "worker", "__main__"],
]
RECAP = [
    ["randomness", "device", "model_files", "run_status"],
    ["worlds", "train"],
    ["data"],
    ["text_policy"],
    ["engine"],
    ["generate", "select"],
    ["caption", "captioned_tars", "downloaded"],
    ["exporting", "join"],
    ["clip", "dit", "sft"],
    ["demo", "score", "text_statistics"],
    ["export", "report", "evaluate"],
    ["publish", "dropped", "pilots", "__main__"],
]
MEETING = (
    "hpc.base",
    "hpc.config",
    "hpc.operator",
    "hpc.trainer",
    "hpc.run.directory",
    "hpc.run.published",
    "hpc.run.pilot",
)
"""All that recap may know of hpc: the protocols of a job, and where a run's files lie."""


@cache
def files(*folders: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [ROOT / name for name in listed if name.endswith(".py") and (ROOT / name).exists()]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(package: str) -> dict[str, set[str]]:
    """What each module imports, anywhere in it: inside functions and for type checkers, too."""
    known = {dotted(path) for folder in ("hpc", "recap", "benchmarks", "tests") for path in files(folder)}
    return {dotted(path): set(_imported(path, known)) - {dotted(path)} for path in files(package)}


def _imported(path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield from [whole] if whole in known else [node.module] if node.module in known else []


@pytest.mark.parametrize(("package", "floors"), [("hpc", HPC), ("recap", RECAP)])
def test_imports_go_upward(package: str, floors: list[list[str]]) -> None:
    floor = {name: number for number, names in enumerate(floors) for name in names}
    wrong = []
    for module, imported in imports(package).items():
        if module == package:
            continue
        mine = module.split(".")[1]
        for other in imported:
            theirs = other.split(".")[1] if other.startswith(f"{package}.") else ""
            if theirs and theirs != mine and floor[theirs] >= floor[mine]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize("package", ["hpc", "recap", "benchmarks", "tests"])
def test_no_circle(package: str) -> None:
    """Kahn's order: what is left over imports one another in a circle."""
    left = {module: {other for other in found if other != module} for module, found in imports(package).items()}
    while free := {module for module, found in left.items() if not found & left.keys()}:
        left = {module: found for module, found in left.items() if module not in free}
    assert not left, f"in circles, or above one: {sorted(left)}"


def test_hpc_and_recap_meet_in_the_protocols() -> None:
    assert not [m for m, found in imports("hpc").items() if any(other.startswith("recap") for other in found)]
    strange = {
        f"{module} imports {other}"
        for module, found in imports("recap").items()
        for other in found
        if other.startswith("hpc") and not any(other == door or other.startswith(f"{door}.") for door in MEETING)
    }
    assert not strange, "\n".join(sorted(strange))


def test_files_and_functions_have_a_size_for_reading() -> None:
    large = []
    for path in files("hpc", "recap", "benchmarks", "tests"):
        if (lines := path.read_text(encoding="utf-8").count("\n")) > LINES:
            large.append(f"{path.relative_to(ROOT)}: {lines} lines, at most {LINES}")
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1  # type: ignore[operator]
                if length > FUNCTION:
                    large.append(f"{path.relative_to(ROOT)}: {node.name}: {length} lines, at most {FUNCTION}")
    assert not large, "\n".join(large)


def test_the_tests_of_this_file_can_fail(tmp_path: Path) -> None:
    """An import inside a function, and one for type checkers alone, are seen."""
    file = tmp_path / "m.py"
    file.write_text("def f():\n    from hpc.run import plan\nif TYPE_CHECKING:\n    from hpc.run.ledger import Claim\n")
    assert set(_imported(file, {"hpc.run.plan", "hpc.run.ledger"})) == {"hpc.run.plan", "hpc.run.ledger"}
