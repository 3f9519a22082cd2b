"""One word for one thing: what docs/glossary.md calls "never" stands in no page, config, key or text of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"


def never() -> dict[str, list[str]]:
    """By term, the words that stand for something else or for nothing."""
    rows = [line.strip("|").split("|") for line in GLOSSARY.read_text().splitlines() if line.startswith("| ")]
    return {row[0].strip(): [word.strip() for word in row[2].split(",")] for row in rows if row[0].strip() != "word"}


def texts() -> Iterator[tuple[str, str]]:
    """(where, text): pages, configs and examples as they are; of code every string: errors, status, keys, --help."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    shown = [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "examples").glob("*/*")]
    for file in [*(page for page in pages if page != GLOSSARY), *(file for file in shown if file.is_file())]:
        yield str(file.relative_to(ROOT)), file.read_text()
    for package in ("hpc", "recap", "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            strings = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
            yield from ((f"{file.relative_to(ROOT)}:{s.lineno}", s.value) for s in strings if isinstance(s.value, str))


def pattern(words: list[str]) -> re.Pattern[str]:
    """Any of these, as whole words, in any case, their plurals and across the end of a line."""
    anywhere = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"\b(?:{anywhere})(?:s|es)?\b", re.IGNORECASE)


def test_a_word_of_another_name_is_found() -> None:
    found = pattern(["done file", "re-run"])
    assert found.search("two Done\n  files") and found.search("Re-runs") and not found.search("it has done filet")


def test_one_word_for_one_thing() -> None:
    table = never()
    assert len(table) > 30 and all(all(words) for words in table.values())
    banned = pattern([word for words in table.values() for word in words])
    said = [f"{where}: {found[0]!r}" for where, text in texts() for found in banned.finditer(text)]
    assert not said, "\n".join(said)
