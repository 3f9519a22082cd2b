"""Stages of a pipeline that are made once for each of some names, by `%` in their own, as in a pattern rule of Make.

for_each:
  old: runs/old                              # a directory
  new: {config: ../caption/demo.yaml}        # or a stage, which gets this name
stages:
  judged-%:                                  # judged-old and judged-new
    config: ../generate/judge.yaml
    set: {data.columns.caption.run: "${%}"}  # runs/old, and the directory of stage new
  battle-%1-%2: ...                          # for each two of them: battle-old-new
  page:
    command: [python, -m, mine.page, "%=${judged-%}"]     # an entry for each
    command: [python, -m, mine.page, [--run, "${%}"]]     # several entries for each
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hpc.base.errors import UserError

_MARK = re.compile(r"%%|\$\{%([12]?)\}|%([12]?)")
_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True)
class _Filling:
    """What one stage that is made of a pattern gets: `names` in place of `%` (or `%1` and `%2`, keys "1" and "2"), and
    `places`, directories, in place of `${%}`.
    """

    names: Mapping[str, str]
    places: Mapping[str, str]

    def of(self, value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {self.of(key, where): self.of(inner, where) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.of(inner, where) for inner in value]
        return _MARK.sub(lambda found: self._one(found, where), value) if isinstance(value, str) else value

    def _one(self, found: re.Match[str], where: str) -> str:
        if found[0] == "%%":
            return "%"
        place, which = found[0].startswith("$"), found[1] or found[2] or ""
        if which not in self.names:
            wanted = " or ".join(f"%{name}" for name in self.names)
            raise UserError(f"config: {where}: {found[0]!r}: expected {wanted} here. A percent sign itself is %%.")
        return (self.places if place else self.names)[which]


def expanded(stages: Mapping[str, Any], names: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(all stages, those of `for_each` and those made of patterns among them; by stage the pattern it was made of).

    Raises:
        UserError: a name, or what stands for it, cannot be; two stages would have one name.
    """
    each = {name: value for name, value in names.items() if value is not None}
    places = {name: _location(name, value, source) for name, value in each.items()}
    ones = [_Filling({"": name}, {"": place}) for name, place in places.items()]
    twos = [_Filling({"1": a, "2": b}, {"1": places[a], "2": places[b]}) for a, b in combinations(places, 2)]
    found: dict[str, Any] = {name: value for name, value in each.items() if isinstance(value, Mapping)}
    made: dict[str, str] = {}
    for name, tree in stages.items():
        where = f"{source}: `stages.{name}`"
        fillings = _fillings(name, ones, twos)
        if fillings is None:
            made_stages = {name: _lists(tree, ones, twos, where)}
        elif not each:
            raise UserError(f"config: {where}: is made for each of `for_each`, which is empty. Name at least one.")
        else:
            made_stages = {one.of(name, where): _flat(one.of(tree, where)) for one in fillings}
            made |= dict.fromkeys(made_stages, name)
        if taken := found.keys() & made_stages.keys():
            raise UserError(f"config: {where}: there would be two stages {min(taken)!r}. Name one of them otherwise.")
        found |= made_stages
    return found, made


def _location(name: str, value: Any, source: str) -> str:
    """What `${%}` stands for: a directory, or a reference to the stage that has this name."""
    where = f"config: {source}: `for_each.{name}`"
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: cannot be a name. Use letters, digits, '_' and '-'.")
    if isinstance(value, Mapping):
        return "${" + name + "}"
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {value!r}: expected a directory, or a stage (a group with config or command)")
    return value if value.startswith("${") or "://" in value else os.path.abspath(os.path.expanduser(value))


def _fillings(text: str, ones: list[_Filling], twos: list[_Filling]) -> list[_Filling] | None:
    """The fillings for the marks in a text: single names, or pairs of them; None where it has no marks."""
    marks = {found[1] or found[2] or "" for found in _MARK.finditer(text) if found[0] != "%%"}
    return None if not marks else ones if "" in marks else twos


def _lists(tree: Any, ones: list[_Filling], twos: list[_Filling], where: str) -> Any:
    """A stage that is made once. An entry of its `command` or `needs` that has marks becomes one entry for each name,
    and an entry that is a list becomes several.
    """
    if not isinstance(tree, Mapping):
        return tree
    changed = {}
    for key in ("command", "needs"):
        if not isinstance(tree.get(key), list):
            continue
        written: list[Any] = []
        for entry in tree[key]:
            text = " ".join(map(str, entry)) if isinstance(entry, list) else str(entry)
            fillings = _fillings(text, ones, twos) if ones else None
            entries = [entry] if fillings is None else [one.of(entry, where) for one in fillings]
            for one in entries:
                written += one if isinstance(one, list) else [one]
        changed[key] = written
    return {**tree, **changed}


def _flat(tree: Any) -> Any:
    """A stage with the lists inside its `command` and `needs` joined into one."""
    return _lists(tree, [], [], "")
