"""The outputs that the pages show, recorded from real runs.

    docs/record            run every shown command again, and write its output into the pages

A fenced block whose first line is `$ COMMAND` shows what that command prints. Commands are run in a directory of their
own, in which `configs/` and `recap/` lie and the runs that they speak of (see `RUNS`).
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\n\$ (?P<command>[^\n]+)\n(?P<shown>.*?)^```$", re.MULTILINE | re.DOTALL)
HOME = "/home/me/recap"  # what pages call the directory
# Paragraphs of a status screen that depend on how fast the machine is: their first word alone is compared, or nothing.
VARYING = ("hours", "rate", "spent", "forecast")
PASSING = ("bound", "idle")


def twelve_tars(work: Path) -> None:
    """The run `screen`: the shipped flags in twelve tars, two of them damaged, one with eleven images cut in half."""
    flags: list[list[tuple[str, bytes]]] = []
    for path in sorted((ROOT / "recap/demo/flags").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
        keys = dict.fromkeys(name.partition(".")[0] for name, _ in members)
        flags += [[(name, data) for name, data in members if name.partition(".")[0] == key] for key in keys]
    (work / "tars").mkdir()
    for number in range(12):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for place, sample in enumerate(flags[number::12]):
                for name, data in sample:
                    cut = number == 3 and place < 11 and name.endswith(".png")
                    info = tarfile.TarInfo(name)
                    kept = data[: len(data) // 2] if cut else data
                    info.size = len(kept)
                    tar.addfile(info, io.BytesIO(kept))
        end = {8: 60_000, 10: 512 * 40 + 41}.get(number)
        (work / f"tars/{number:05d}.tar").write_bytes(file.getvalue()[:end])
    run("python -m hpc.launch configs/caption/demo.yaml name=screen data.shards=[tars]", work)


RUNS: dict[str, Callable[[Path], None]] = {"runs/screen": twelve_tars}


def blocks() -> Iterator[tuple[Path, str, str]]:
    """(page, command, what the page shows of it)."""
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            yield page, found["command"], found["shown"]


def needs(command: str) -> list[str]:
    """The runs that must be made before a command: minutes."""
    return [name for name in RUNS if name in command]


@contextmanager
def place(command: str = "") -> Iterator[Path]:
    """A directory to type a command in, with the runs that it needs; its name is always as long, since lines are
    broken by length."""
    with tempfile.TemporaryDirectory(prefix="record-", dir="/tmp") as folder:
        work = Path(folder).resolve()
        for name in ("configs", "recap"):
            (work / name).symlink_to(ROOT / name)
        for name in needs(command):
            RUNS[name](work)
        yield work


def run(command: str, work: Path) -> str:
    """What a command prints on a terminal of 110 columns, without the names of this machine."""
    _, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=work, text=True, timeout=600, check=False, stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "110", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    text = done.stdout.replace(sys.executable, f"{HOME}/.venv/bin/python")
    text = text.replace(str(work), HOME).replace(str(ROOT), HOME)
    text = re.sub(rf"\b{re.escape(os.uname().nodename)}\b", "node7", text)
    return "".join(f"{line.rstrip()}\n" for line in text.strip().splitlines())


def masked(text: str) -> list[str]:
    """The paragraphs of an output (indented lines go on with the one before), however they are broken into lines,
    with 0 for each number and without bars; of what depends on speed the first word at most."""
    paragraphs: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if line.startswith(" ") and paragraphs:
            paragraphs[-1] += " " + line
        else:
            paragraphs.append(line)
    words = [re.sub(r"\b[0-9a-f]{8,}\b|\d[\d,.]*", "0", re.sub(r"[█░]+", "", p)).split() for p in paragraphs]
    return [w[0] if w[0] in VARYING else " ".join(w) for w in words if w[0] not in PASSING]


def main() -> None:
    for page, command, shown in list(blocks()):
        with place(command) as work:
            said = run(command, work)
        page.write_text(page.read_text().replace(f"$ {command}\n{shown}", f"$ {command}\n{said}"))


if __name__ == "__main__":
    main()
