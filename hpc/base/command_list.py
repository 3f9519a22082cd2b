"""What `python -m hpc`, `recap` and `benchmarks` print: the commands of a package, with a line each. Imports none."""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from hpc.base.errors import Exit, Parser

DISTRIBUTION = "recap-hpc"
LISTS = {"hpc": "jobs", "recap": "captions, trainings, exports", "benchmarks": "figures and studies"}


def commands(package: Path) -> Iterator[tuple[str, str]]:
    """(dotted name, first sentence of its text) of each module that says how it is run."""
    for file in sorted(package.rglob("*.py")):
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        text = file.read_text(encoding="utf-8")
        about = ast.get_docstring(ast.parse(text)) or "" if '__name__ == "__main__"' in text else ""
        if re.search(rf"^ *python -m {re.escape(name)}\b", about, re.MULTILINE):
            first = " ".join(about.partition("\n\n")[0].split())
            yield name, re.split(r"(?<=[.?])\s", first)[0]


def main(package: Path, about: str, first: Sequence[str] = (), hidden: Sequence[str] = ()) -> int:
    """Print the commands, those of `first` before the others, `hidden` (which only we start) left out."""
    name = package.name
    parser = Parser(prog=f"python -m {name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {version()}")
    args, _ = parser.parse_known_args()
    found = {command: line for command, line in commands(package) if command not in hidden}
    if args.command:
        near = difflib.get_close_matches(f"{name}.{args.command[0]}", found, n=1, cutoff=0.5)
        parser.error(f"run a command by its whole name{f': python -m {near[0]}' if near else ''}")
    width = max(map(len, found)) + 11
    sys.stdout.write(f"{about}\n\n")
    for command in sorted(found, key=lambda c: (first.index(c) if c in first else len(first), c)):
        room = max(shutil.get_terminal_size().columns, 100) - width - 2
        line = textwrap.shorten(found[command], room, placeholder=" …")
        sys.stdout.write(f"{f'python -m {command}':<{width}}  {line}\n")
    others = ", ".join(f"python -m {other} ({what})" for other, what in LISTS.items() if other != name)
    sys.stdout.write(f"\nEach has --help. More: {others}\n")
    sys.stdout.write("All keys of configs: python -m hpc.keys [PREFIX] · all pages: docs/index.md\n")
    return Exit.COMPLETE


def version() -> str:
    """Of the installed project; that of a source tree that is not installed is not known."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(not installed)"
