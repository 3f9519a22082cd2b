"""What the pages say is there: links, commands and their flags, files, config keys."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc.base.errors import Exit
from tests.docs import commands_page, schemas_page

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OWN = ("hpc", "recap", "benchmarks", "tests")
# Keys of one's own inside a mapping (data.columns.NAME.run) and of a list (data.0.path) are left out of a key.
MAPPINGS = ("data.columns", "text.weights", "sweep", "stages", "formats", "evaluate", "captioner.prompts")

PLACEHOLDER = re.compile(r"\b(NAME|mysite)\b")  # files that a reader is to make


def pages() -> list[Any]:
    return [pytest.param(page, id=page.name) for page in PAGES]


def slug(heading: str) -> str:
    """The anchor of a heading, as forges make it."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(line.lstrip("#")) for line in text.splitlines() if re.match(r"#+ ", line)}


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def commands_in(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m ...` of ours, in blocks and between backticks."""
    text = page.read_text().replace("\\\n", " ")
    for typed in re.findall(rf"python3? -m ((?:{'|'.join(OWN)})\b[^`\n]*)", text):
        typed = re.split(r"\s#|\s{3,}|&&| [>|] |…", typed)[0]
        try:
            module, *arguments = shlex.split(typed)
        except ValueError:  # a quote that is closed beyond the backticks
            module, *arguments = typed.split()
        yield module.rstrip(".,:;)"), arguments


@functools.cache
def source(*folders: str) -> str:
    """All Python of these folders, to look for words in."""
    return "\n".join(file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py"))


@functools.cache
def keys() -> set[str]:
    """Every key of docs/keys.md, which a test keeps equal to the schemas."""
    found = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "keys.md").read_text(), re.MULTILINE)
    return {part for key in found for part in parents(re.sub(r"\.<\w+>|\[\]", "", key))}


def parents(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


@pytest.mark.parametrize("page", pages())
def test_commands_are_there(page: Path) -> None:
    for module, arguments in commands_in(page):
        file = ROOT / Path(*module.split("."))
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), f"{page.name}: {module}"
        for argument in arguments:
            flag = argument.partition("=")[0]
            if re.fullmatch(r"--[a-z][\w-]+", flag):
                assert f'"{flag}"' in source(*OWN), f"{page.name}: {module} has no {flag}"
            if re.fullmatch(r"configs/[\w/]+\.yaml", argument):
                assert (ROOT / argument).is_file(), f"{page.name}: {argument}"
        if module == "hpc.launch":
            for typed in arguments[1:]:
                check_key(page, typed)


def check_key(page: Path, typed: str) -> None:
    key, equals, _ = typed.partition("=")
    if not equals or key.startswith("-") or not re.fullmatch(r"[a-z_][\w.]*", key):
        return
    key = re.sub(r"\.\d+\b", "", key)
    for mapping in MAPPINGS:
        key = re.sub(rf"^({re.escape(mapping)})\.\w+", r"\1", key)
    _stage, _, rest = key.partition(".")  # of a pipeline: sft.train.samples
    assert key in keys() or rest in keys(), f"{page.name}: no config has the key {typed}"


@pytest.mark.parametrize("page", pages())
def test_keys_and_files_are_there(page: Path) -> None:
    text = page.read_text()
    for key in re.findall(r"`((?:cluster|map|gang|captioner|train)\.[a-z_][a-z_.]*)[`=:]", text):
        assert key.rstrip(".") in keys(), f"{page.name}: no config has the key {key}"
    for path in re.findall(r"`((?:hpc|recap|benchmarks|configs|tests|sbatch|docs)/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or PLACEHOLDER.search(path), f"{page.name}: {path}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md" and page.name not in index]
    assert not missing


def test_the_map_of_the_code_names_every_package() -> None:
    page = (ROOT / "docs" / "code.md").read_text()
    packages = [
        file.parent.relative_to(ROOT) for top in ("hpc", "recap") for file in (ROOT / top).glob("*/__init__.py")
    ]
    assert packages and not [str(package) for package in packages if f"`{package}/" not in page]


def test_the_schemas_page_is_up_to_date() -> None:
    """`python -m tests.docs.schemas_page > docs/schemas.md` mends it."""
    assert schemas_page.page() == (ROOT / "docs" / "schemas.md").read_text()


def test_the_commands_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == commands_page.page()
    assert set(commands_page.EXIT_CODES) == set(Exit)


def test_no_environment_variable_is_left_out() -> None:
    read = set()
    for folder in ("hpc", "recap"):
        for file in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r'environ(?:\.get|\.pop)?[\[(]"([A-Z][A-Z0-9_]+)"', file.read_text()))
    assert read <= set(commands_page.VARIABLES), read - set(commands_page.VARIABLES)


def test_messages_of_the_troubleshooting_page_exist() -> None:
    """The fixed words of each message, as far as they stand in one string of the source."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    literals = re.sub(r'"\s*\n\s*f?"', "", source("hpc", "recap"))
    said_there = re.findall(r"^\| (`{1,2})(.+?)\1 ", text, re.MULTILINE)
    assert len(said_there) > 25
    for _, said in said_there:
        for words in re.split(r"\.\.\.|\b[A-Z]{2,}\b|[()→;:]", said):
            words = words.strip(" .,")
            if len(words) > 8:
                assert words in literals, f"{said}: {words!r} is said nowhere"
