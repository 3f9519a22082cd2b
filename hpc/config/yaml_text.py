"""YAML as configs write it: 24:00:00 is a time, 1e-3 is a number, and yes is a word."""

from __future__ import annotations

import re
from typing import Any

import yaml


def dump(tree: dict[str, Any]) -> str:
    """YAML text from which `parse` makes the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, allow_unicode=True, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 24:00:00 as the number 86400 (base 60), 1e-3 as text, and yes, no, on and off as truth values.
    Here they are a time, a number and words, as in YAML 1.2; keys that are true or false take the words, too. A key
    that is given twice is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(None, None, f"`{twice}` is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = dict(yaml.SafeLoader.yaml_implicit_resolvers)


for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first] = [
        ("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$")),
        ("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$")),
    ]


for _first in "yYnNoO":  # yes, no, on and off are words: of PyYAML's rules for these letters only null is kept
    _Loader.yaml_implicit_resolvers[_first] = [
        (tag, pattern) for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers[_first] if not tag.endswith(":bool")
    ]


class _Dumper(yaml.SafeDumper):
    """Puts quotes around a text that our loader would take for a number or a truth value."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse(text: str) -> Any:
    """The values in a YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # a SafeLoader
