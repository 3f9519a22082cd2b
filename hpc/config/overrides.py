"""`a.b=value` texts of a command line, and what they change in a tree of plain values."""

from __future__ import annotations

import copy
import re
from typing import Any

import yaml

from hpc.base.errors import UserError
from hpc.config.yaml_text import parse


def with_overrides(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A copy of a config's tree with `a.b=value` texts applied."""
    tree = copy.deepcopy(tree)
    for key, value in parsed(overrides).items():
        assign(tree, key, value)
    return tree


def parsed(overrides: list[str]) -> dict[str, Any]:
    """Values of `a.b=value` texts by their dotted keys."""
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key in found:
            raise UserError(f"config: `{key}`: given twice. If the shell expanded braces, put the argument in quotes.")
        if not equals or not key:
            raise UserError(f"config: `{override}`: expected key=value, e.g. captioner.max_tokens=64")
        found[key] = _parse_value(value)
    return found


def _parse_value(text: str) -> Any:
    """A command-line value, read as YAML where it is YAML; {0..9}.tar, {a,b}.tar and @file stay text, in lists too."""
    if ".." in text or re.match(r"\[?\s*@|\[.*,\s*@", text):
        return _texts(text)
    try:
        found = parse(text)
        # YAML would drop what stands behind " #" of a text without quotes, and make its line breaks spaces.
        return text if isinstance(found, str) and text[0] not in "'\"|>&!*" else found
    except yaml.YAMLError:
        return _texts(text) if re.search(r"\{[^:{}]+,[^:{}]*\}", text) else text


def _texts(text: str) -> str | list[str]:
    """A text, or the entries of `[a, b]`, all of them texts. A comma inside braces separates no entries."""
    if text.startswith("[") and text.endswith("]"):
        return [part.strip() for part in re.split(r",(?![^{]*\})", text[1:-1])]
    return text


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the key `a.b` of a tree, in place, and make groups that are missing. A number leads into a list:
    `data.0.path`. Raises UserError where the path leads into something else.
    """
    *groups, last = dotted.split(".")
    node: Any = tree
    for depth, key in enumerate(groups):
        if not isinstance(node, list) and node.get(key) is None:  # not there, or `key: null`
            node[key] = {}
        node = node[_index(node, key, dotted) if isinstance(node, list) else key]
        if not isinstance(node, dict | list):
            raise UserError(f"config: `{dotted}`: `{'.'.join(groups[: depth + 1])}` is not a group of keys")
    node[_index(node, last, dotted) if isinstance(node, list) else last] = value


def _index(entries: list[Any], key: str, dotted: str) -> int:
    """The number that a part of a dotted key is, of an entry that the list has."""
    if not key.isdecimal() or int(key) >= len(entries):
        known = f"0 to {len(entries) - 1}" if entries else "it is empty"
        raise UserError(f"config: `{dotted}`: {key!r} is not the number of an entry of this list ({known})")
    return int(key)
