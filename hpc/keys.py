"""Every key of a config: its type, its default, what it means, and whether it makes the output.

    python -m hpc.keys                      all of them
    python -m hpc.keys cluster              those of a group
    python -m hpc.keys captioner.max_tokens
    python -m hpc.keys --markdown           as docs/keys.md has them

A *semantic* key enters the identity of what is made: another value makes another column, or another training. All other
keys say where and how a job runs, and may change from launch to launch. Exit codes: 0, 64 unknown prefix.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from hpc import config as configs
from hpc.base.command import command, end_on_closed_pipe
from hpc.base.errors import Exit, Parser, UserError
from hpc.base.snapshot import ROOT
from hpc.operator import load_operator
from hpc.pipeline.definition import PipelineConfig, StageConfig

_EVERY, _PIPELINE = "every config", "pipelines"


@dataclass(frozen=True)
class Key:
    """A key of a config. In its name, `a.<name>.b` stands for keys in a mapping with any names, `a[].b` in a list."""

    name: str
    type: str
    default: str
    meaning: str
    semantic: bool

    def lines(self) -> str:
        kind = " · semantic" if self.semantic else ""
        return f"{self.name}: {self.type} = {self.default}{kind}\n    {self.meaning}\n"

    def row(self) -> str:
        cells = (f"`{self.name}`", f"`{self.type}`", f"`{self.default}`", "yes" if self.semantic else "", self.meaning)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def keys(schema: type, prefix: str = "", *, semantic: bool = True) -> Iterator[Key]:
    """The keys of a dataclass and of those in it, in their order."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, name = hints[field.name], prefix + field.name
        makes = semantic and not field.metadata.get("execution")
        inner, place = _inner(hint)
        if inner is None or place or type(None) in typing.get_args(hint):
            yield Key(name, _type(hint), _default(field), field.metadata.get("help", ""), makes)
        if inner is not None:
            yield from keys(inner, f"{name}{place}.", semantic=makes)


def _inner(hint: Any) -> tuple[type | None, str]:
    """The dataclass in a hint, and what stands between its key and theirs."""
    for option in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option, ""
        if origin in (dict, list) and isinstance(arguments[-1], type) and dataclasses.is_dataclass(arguments[-1]):
            return arguments[-1], ".<name>" if origin is dict else "[]"
    return None, ""


def _type(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return "group" if dataclasses.is_dataclass(hint) else hint.__name__
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join("null" if option is type(None) else _type(option) for option in typing.get_args(hint))
    inside = ", ".join(_type(option) for option in typing.get_args(hint))
    origin = typing.get_origin(hint)
    return f"{origin.__name__}[{inside}]" if isinstance(origin, type) else str(hint).removeprefix("typing.")


def _default(field: Any) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) else str(value)


def works() -> dict[str, type]:
    """The Config of every operator and trainer that a shipped config names, by dotted path."""
    found = set()
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        tree = configs.read(file)
        found |= {str(tree[kind]) for kind in ("operator", "trainer") if tree.get(kind)}
    return {path: load_operator(path).Config for path in sorted(found)}


def groups() -> dict[str, list[Key]]:
    """All keys by where they can be used: every config, pipelines, or one operator or trainer."""
    stages = [*keys(PipelineConfig, semantic=False), *keys(StageConfig, "stages.<name>.", semantic=False)]
    own = {path: list(keys(schema)) for path, schema in works().items()}
    return {_EVERY: list(keys(configs.RunConfig)), _PIPELINE: stages, **own}


def chosen(found: dict[str, list[Key]], prefix: str) -> dict[str, list[Key]]:
    """The keys in the group `prefix` or of that name; where there is none, those that begin with these letters. Raises
    UserError, with the nearest keys, where none does.
    """
    start = prefix.rstrip(".")
    some = {
        whose: [key for key in known if f"{key.name}.".startswith(f"{start}.") or key.name.startswith(f"{start}[")]
        for whose, known in found.items()
    }
    if not any(some.values()):
        some = {whose: [key for key in known if key.name.startswith(start)] for whose, known in found.items()}
    if not any(some.values()):
        names = {key.name for known in found.values() for key in known}
        near = difflib.get_close_matches(start, names, n=3, cutoff=0.5)
        raise UserError(f"keys: no key begins with {prefix!r}." + (f" Near: {', '.join(near)}." if near else ""))
    return {whose: known for whose, known in some.items() if known}


def markdown(found: dict[str, list[Key]]) -> str:
    """docs/keys.md."""
    parts = ["# Every key of a config", "Made by `python -m hpc.keys --markdown > docs/keys.md`.", _rest_of_doc()]
    for whose, known in found.items():
        head = "| key | type | default | semantic | meaning |\n|---|---|---|---|---|"
        parts.append(f"## {whose}\n\n" + "\n".join([head, *(key.row() for key in known)]))
    return "\n\n".join(parts) + "\n"


def _rest_of_doc() -> str:
    return next(part for part in (__doc__ or "").split("\n\n") if part.startswith("A *semantic*")).split(" Exit")[0]


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.keys", description=__doc__)
    parser.add_argument("prefix", nargs="?", default="", help="a key, or the group that it begins with")
    parser.add_argument("--markdown", action="store_true", help="as docs/keys.md has them")
    args = parser.parse_args(arguments)
    found = groups()
    if args.prefix:
        found = chosen(found, args.prefix)
    if args.markdown:
        sys.stdout.write(markdown(found))
        return Exit.COMPLETE
    seen: set[Key] = set()
    for whose, known in found.items():
        if fresh := [key for key in known if key not in seen]:
            also = [other for other in found if other != whose and set(fresh) <= set(found[other])]
            sys.stdout.write(f"--- {', '.join([whose, *also] if args.prefix else [whose])}\n")
            sys.stdout.write("".join(key.lines() for key in fresh))
        seen |= set(known) if args.prefix else set()
    return Exit.COMPLETE


if __name__ == "__main__":
    end_on_closed_pipe()
    sys.exit(main())
