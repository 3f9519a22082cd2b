"""Parsers of answers into typed fields. An answer that does not parse raises `Unparsed`; its row is skipped with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa

from recap.data.texts import clean
from recap.generate.rating import parse_rating
from recap.generate.settings import ParseConfig
from recap.generate.verdict import Verdicts


class Unparsed(ValueError):
    """An answer that is not in the form that was asked for. The message says what is wrong."""


class Parser(Protocol):
    """Turns an answer into values. fields: their names and types."""

    fields: list[tuple[str, pa.DataType]]

    def __call__(self, text: str) -> dict[str, Any]:
        """The fields' values. Raises Unparsed."""


def parser_of(config: ParseConfig) -> Parser:
    """The parser that a config describes. ValueError where it describes several, or none that works."""
    given = [name for name in ("json", "lines", "brackets", "verdict", "rating", "regex") if getattr(config, name)]
    if len(given) > 1:
        raise ValueError(f"parse: {' and '.join(given)}: an answer is parsed in one way; keep one")
    if config.types and given != ["regex"]:
        raise ValueError("parse.types: are of regex's groups; write parse.regex too, or remove them")
    makers: dict[str, Callable[[], Parser]] = {
        "json": lambda: JsonParser(config.json),
        "lines": LinesParser,
        "brackets": lambda: BracketsParser(config.brackets),
        "verdict": lambda: VerdictParser(config.verdict),
        "rating": RatingParser,
        "regex": lambda: RegexParser(config.regex, config.types),
    }
    return makers[given[0]]() if given else TextParser()


class TextParser:
    """Makes no fields: the answer's text is all."""

    fields: list[tuple[str, pa.DataType]] = []

    def __call__(self, text: str) -> dict[str, Any]:
        return {}


# --- JSON -------------------------------------------------------------------------------------------


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return clean(value)


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise TypeError
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError
    return [_string(entry) for entry in value]


def _any(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=False))


_TYPES: Mapping[str, tuple[pa.DataType, Callable[[Any], Any]]] = {
    "string": (pa.string(), _string),
    "int": (pa.int64(), _int),
    "float": (pa.float64(), _float),
    "bool": (pa.bool_(), _bool),
    "strings": (pa.list_(pa.string()), _strings),
    "any": (pa.string(), _any),
}


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class JsonParser:
    """The first JSON object in an answer. schema: type by field; other keys of the object are left out."""

    def __init__(self, schema: Mapping[str, str]) -> None:
        self._schema = dict(schema)
        for name, kind in schema.items():
            if kind.removesuffix("?") not in _TYPES:
                raise ValueError(f"parse.json.{name} = {kind!r}: not a type; use one of {', '.join(_TYPES)}")
        self.fields = [(name, _TYPES[kind.removesuffix("?")][0]) for name, kind in schema.items()]
        self._decoder = json.JSONDecoder(parse_constant=_no_number)

    def __call__(self, text: str) -> dict[str, Any]:
        found, problem = None, "no JSON object"
        for match in re.finditer(r"\{", text):
            try:
                found, _ = self._decoder.raw_decode(text, match.start())
                break
            except (ValueError, RecursionError) as error:
                problem = f"no JSON object: {error}"
                if isinstance(error, RecursionError):
                    break
        if found is None:
            raise Unparsed(problem)
        return {name: self._value(found, name, kind) for name, kind in self._schema.items()}

    @staticmethod
    def _value(found: dict[str, Any], name: str, kind: str) -> Any:
        value, optional = found.get(name), kind.endswith("?")
        if value is None and optional:
            return None
        if name not in found:
            raise Unparsed(f"{name} is missing; there are {', '.join(map(str, found))[:200] or 'no keys'}")
        try:
            return _TYPES[kind.removesuffix("?")][1](value)
        except (TypeError, OverflowError):
            raise Unparsed(f"{name} is {json.dumps(value)[:80]}, expected {kind}") from None


# --- texts ------------------------------------------------------------------------------------------

_BULLET = re.compile(r"^\s*(?:[-*•–]\s+|\(?\d{1,3}[.):]\s+)?")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


class LinesParser:
    """The lines of an answer, without bullets and numbers."""

    fields = [("lines", pa.list_(pa.string()))]

    def __call__(self, text: str) -> dict[str, Any]:
        lines = [_BULLET.sub("", line).strip() for line in text.splitlines()]
        if not any(lines):
            raise Unparsed("no line with a text")
        return {"lines": [clean(line) for line in lines if line]}


class BracketsParser:
    """Items that are written as consecutive brackets, one for each field: [red circle][single]. A list for each
    field."""

    def __init__(self, names: list[str]) -> None:
        self.fields = [(name, pa.list_(pa.string())) for name in names]

    def __call__(self, text: str) -> dict[str, Any]:
        runs: list[list[str]] = []
        end = -1
        for match in _BRACKETS.finditer(text):
            if end < 0 or text[end : match.start()].strip(" \t") or len(runs[-1]) == len(self.fields):
                runs.append([])
            runs[-1].append(clean(match[1].strip()))
            end = match.end()
        if not runs:
            raise Unparsed("no brackets")
        if odd := next((run for run in runs if len(run) != len(self.fields)), None):
            raise Unparsed(f"{len(odd)} brackets in a row, expected {len(self.fields)}: {odd[0][:80]}")
        return {name: [run[at] for run in runs] for at, (name, _) in enumerate(self.fields)}


class VerdictParser:
    """Which one of `choices` an answer gives: see recap.generate.verdict."""

    fields = [("verdict", pa.string())]

    def __init__(self, choices: list[str]) -> None:
        self._verdicts = Verdicts(choices)

    def __call__(self, text: str) -> dict[str, Any]:
        verdict = self._verdicts.of(text)
        if verdict is None:
            raise Unparsed("none or several of the words" if text.strip() else "an empty answer")
        return {"verdict": verdict}


class RatingParser:
    """A rating from 1 to 5, in JSON or in words."""

    fields = [("rating", pa.int64())]

    def __call__(self, text: str) -> dict[str, Any]:
        rating = parse_rating(text)
        if rating is None:
            raise Unparsed("no rating from 1 to 5, or several")
        return {"rating": rating}


class RegexParser:
    """The named groups of a regular expression, searched for in the answer. types: by group, string where not given."""

    _TYPES: Mapping[str, tuple[pa.DataType, Callable[[str], Any]]] = {
        "string": (pa.string(), lambda text: clean(text.strip())),
        "int": (pa.int64(), lambda text: _int(int(text))),
        "float": (pa.float64(), lambda text: _float(float(text))),
    }

    def __init__(self, pattern: str, types: Mapping[str, str]) -> None:
        try:
            self._pattern = re.compile(pattern, re.S)
        except re.error as error:
            raise ValueError(f"parse.regex = {pattern!r}: {error}; correct it") from error
        names = list(self._pattern.groupindex)
        if not names or set(types) - set(names):
            raise ValueError(f"parse.regex = {pattern!r}: has the named groups {names}; (?P<name>...) makes one")
        if unknown := set(types.values()) - set(self._TYPES):
            raise ValueError(f"parse.types: {sorted(unknown)[0]!r} is unknown; use one of {', '.join(self._TYPES)}")
        self._kinds = {name: types.get(name, "string") for name in names}
        self.fields = [(name, self._TYPES[kind][0]) for name, kind in self._kinds.items()]

    def __call__(self, text: str) -> dict[str, Any]:
        match = self._pattern.search(text)
        if match is None:
            raise Unparsed("the expression is not found")
        return {name: self._value(match[name], name, kind) for name, kind in self._kinds.items()}

    def _value(self, text: str | None, name: str, kind: str) -> Any:
        if text is None:
            return None
        try:
            return self._TYPES[kind][1](text)
        except (TypeError, ValueError, OverflowError):
            raise Unparsed(f"{name} is {text[:80]!r}, expected {kind}") from None
