"""`--where "re_clip_score > 0.3 and lint is null"`: conditions over the columns of a table, as SQL has them.

Comparisons (= != < <= > >=) of columns and values, `in (…)`, `is null`, each with `not`, joined by `and`, `or` and
parentheses. Texts are in single quotes ('it''s'), names that are not a single word in double quotes. As in duckdb, a
comparison with null is unknown and leaves the row out, NaN equals NaN, and NaN is larger than all numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hpc.base.errors import UserError

_TOKEN = re.compile(
    r"""\s*(?: (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.]) | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+") | (?P<word>[^\W\d]\w*) | (?P<sign><=|>=|<>|!=|==|[=<>(),+-]) )""",
    re.VERBOSE,
)
_RESERVED = ("and", "or", "not", "in", "is", "null", "true", "false")
_SAME = {"==": "=", "<>": "!="}
_DEPTH = 50  # the most nested parentheses and `not`, so that no condition overflows the stack
_MOST = 200  # the most comparisons, since Arrow evaluates a condition by recursion


@dataclass(frozen=True)
class Where:
    """A condition: its text, the columns that it names, and the expression (true for rows to keep)."""

    text: str
    columns: tuple[str, ...]
    expression: pc.Expression

    def keep(self, table: pa.Table) -> pa.Table:
        """The rows for which the condition is true, in their order."""
        import pyarrow.dataset as ds  # imports pandas where it is installed: only where rows are chosen

        found = ds.dataset(table).scanner(columns={"keep": self.expression}, use_threads=False)
        return table.filter(found.to_table()["keep"]) if len(table) else table


def parse(text: str, schema: pa.Schema) -> Where:
    """Read a condition over columns of `schema`.

    Raises:
        UserError: it cannot be read, or names a column that is not there, or compares what cannot be compared.
    """
    parser = _Parser(text, schema)
    expression = parser.condition()
    if parser.kind != "end":
        raise parser.wrong("`and`, `or` or the end is expected here")
    return Where(text, tuple(parser.columns), expression)


def nearest(name: str, known: list[str]) -> str:
    """A hint for messages: which column a name may mean, and which there are."""
    return f"Did you mean {get_close_matches(name.lower(), known, 1, 0.0)[0]!r}? Columns are {', '.join(known)}."


@dataclass(frozen=True)
class _Operand:
    expression: pc.Expression
    kind: str  # number, text, truth, or the type of a column that cannot be compared
    shown: str
    floats: str = ""  # of numbers that are no integers: double, float (a column's), or decimal (a literal's)
    value: Any = None  # of a literal


class _Parser:
    """A recursive descent parser. `or` binds the weakest, then `and`, `not`, and comparisons."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema, self._at, self._end = text, schema, 0, 0
        self._depth = self._comparisons = 0
        self.columns: dict[str, None] = {}
        self.kind = self._token = ""
        self._next()

    def _next(self) -> str:
        """Advance to the next token; return the one before it."""
        before, self._at = self._token, self._end
        found = _TOKEN.match(self._text, self._end)
        if found:
            self.kind, self._end = str(found.lastgroup), found.end()
            self._token, self._at = found[found.lastgroup or 0], found.start(found.lastgroup or 0)
            if self.kind == "word" and self._token.lower() in _RESERVED:
                self.kind, self._token = "reserved", self._token.lower()
        else:
            self.kind = self._token = "end"
            if rest := self._text[self._end :].strip():
                self._token = rest.split()[0]
                raise self.wrong("cannot be read" + (": a quote is not closed" if rest[0] in "'\"" else ""))
        return before

    def wrong(self, why: str) -> UserError:
        """The error for the current token, with its place in the condition."""
        at = self._at + len(self._text[self._at :]) - len(self._text[self._at :].lstrip()) + 1
        shown = "the end" if self.kind == "end" and self._token == "end" else f"`{self._token}`"
        text = self._text if len(self._text) < 200 else f"{self._text[:200]}…"
        return UserError(f"export: --where {text!r}: {shown} at character {at}: {why}.")

    def _takes(self, *tokens: str) -> bool:
        """Whether the current token is one of these words or signs; if so, advance."""
        found = self.kind in ("reserved", "sign") and self._token in tokens
        if found:
            self._next()
        return found

    def _demand(self, token: str) -> None:
        if not self._takes(token):
            raise self.wrong(f"`{token}` is expected here")

    def condition(self) -> pc.Expression:
        return self._chain("or", lambda: self._chain("and", self._negation))

    def _chain(self, word: str, part: Callable[[], pc.Expression]) -> pc.Expression:
        parts = [part()]
        while self._takes(word):
            parts.append(part())
        return _balanced(word, parts)

    def _negation(self) -> pc.Expression:
        self._depth += 1
        if self._depth > _DEPTH:
            raise self.wrong(f"parentheses and `not` are {_DEPTH} deep here; write it flatter")
        if self._takes("not"):
            found = ~self._negation()
        elif self._takes("("):
            found = self.condition()
            self._demand(")")
        else:
            found = self._comparison()
        self._depth -= 1
        return found

    def _comparison(self) -> pc.Expression:
        self._comparisons += 1
        if self._comparisons > _MOST:
            raise self.wrong(f"a condition has at most {_MOST} comparisons; ask for many values with `in (…)`")
        left = self._operand()
        if self._takes("is"):
            absent = self._takes("not")
            self._demand("null")
            return left.expression.is_valid() if absent else left.expression.is_null()
        if self._takes("in"):
            return self._in_list(left)
        if self._takes("not"):
            self._demand("in")
            return ~self._in_list(left)
        sign = self._token
        if not self._takes("=", "==", "!=", "<>", "<", "<=", ">", ">="):
            if left.kind == "truth":
                return left.expression
            raise self.wrong("a comparison (= != < <= > >=), `in (…)` or `is null` is expected here")
        return _compare(_SAME.get(sign, sign), left, self._checked_kinds(left, self._operand()))

    def _in_list(self, left: _Operand) -> pc.Expression:
        self._demand("(")
        found = [self._checked_kinds(left, self._value())]
        while self._takes(","):
            found.append(self._checked_kinds(left, self._value()))
        self._demand(")")
        values, common = [operand.value for operand in found], _common_float_type(left, *found)
        if left.kind == "number" and not left.floats and left.value is None:  # an integer column equals no others
            listed = left.expression.isin(pa.array([v for v in values if isinstance(v, int)], pa.int64()))
        elif common:  # `isin` compares bits: 0.0 and -0.0 differ
            zeros = [-0.0] if 0 in values else []
            listed = left.expression.cast(common, safe=False).isin(pa.array([*map(float, values), *zeros], common))
        else:
            listed = left.expression.isin(pa.array(values))
        # `isin` says that a null is in no list, so that `not in` would keep it.
        return pc.if_else(left.expression.is_null(), pa.scalar(None, pa.bool_()), listed)

    def _value(self) -> _Operand:
        if self.kind in ("word", "quoted"):
            raise self.wrong("a list holds values, no columns; texts stand in single quotes")
        return self._operand()

    def _checked_kinds(self, left: _Operand, right: _Operand) -> _Operand:
        for operand in (left, right):
            if operand.kind not in ("number", "text", "truth"):
                raise self.wrong(f"{operand.shown} is a {operand.kind}, which can be asked for `is null` alone")
        if left.kind != right.kind:
            raise self.wrong(f"{left.shown} is a {left.kind}, {right.shown} a {right.kind}; they cannot be compared")
        return right

    def _operand(self) -> _Operand:
        sign = self._token if self._token in ("+", "-") and self.kind == "sign" else ""
        if sign:
            self._next()
        if self.kind == "number":
            number = self._number(sign + self._token)
            floats = "" if isinstance(number, int) else "double" if "e" in self._token.lower() else "decimal"
            return _Operand(pc.scalar(number), "number", sign + self._next(), floats, number)
        if sign:
            raise self.wrong("a number is expected behind a sign")
        if self.kind == "text":
            value = self._token[1:-1].replace("''", "'")
            return _Operand(pc.scalar(value), "text", self._next(), value=value)
        if self.kind == "word" or self.kind == "quoted":
            return self._column()
        if self.kind == "reserved" and self._token in ("true", "false"):
            truth = self._token == "true"
            return _Operand(pc.scalar(truth), "truth", self._next(), value=truth)
        raise self.wrong(
            "ask for null with `is null`" if self._token == "null" else "a column or a value is expected here"
        )

    def _number(self, text: str) -> int | float:
        number = int(text.partition(".")[0]) if re.fullmatch(r"[+-]?\d{1,30}(\.0*)?", text) else float(text)
        return number if isinstance(number, float) or -(2**63) <= number < 2**63 else float(number)

    def _column(self) -> _Operand:
        name = self._token if self.kind == "word" else self._token[1:-1].replace('""', '"')
        if name not in self._schema.names:
            hint = " Texts stand in single quotes." if self.kind == "quoted" else ""
            raise self.wrong(f"no such column.{hint} {nearest(name, self._schema.names).rstrip('.')}")
        self.columns[name] = None
        self._next()
        type_ = self._schema.field(name).type
        kind = "truth" if pa.types.is_boolean(type_) else str(type_)
        if pa.types.is_string(type_) or pa.types.is_large_string(type_):
            kind = "text"
        elif pa.types.is_integer(type_) or pa.types.is_floating(type_):
            kind = "number"
        floats = "" if not pa.types.is_floating(type_) else "double" if pa.types.is_float64(type_) else "float"
        return _Operand(pc.field(name), kind, name, floats)


def _balanced(word: str, parts: list[pc.Expression]) -> pc.Expression:
    """All parts joined by `or` or `and`, as a balanced tree, so that its depth grows with their logarithm."""
    if len(parts) == 1:
        return parts[0]
    left, right = _balanced(word, parts[: len(parts) // 2]), _balanced(word, parts[len(parts) // 2 :])
    return left | right if word == "or" else left & right


def _common_float_type(*operands: _Operand) -> pa.DataType | None:
    """The float type in which numbers are compared; None where all are integers.

    A float32 column is compared with a literal such as 0.3 in float32, since 0.3 has no exact value in either type.
    """
    floats = {operand.floats for operand in operands}
    if "double" in floats or (floats <= {"", "decimal"} and "decimal" in floats):
        return pa.float64()
    return pa.float32() if "float" in floats else None


def _compare(sign: str, left: _Operand, right: _Operand) -> pc.Expression:
    one, other = left.expression, right.expression
    if common := _common_float_type(left, right):  # unsafe: large integers are rounded
        one, other = one.cast(common, safe=False), other.cast(common, safe=False)
    nan_one, nan_other = (_nan(e, o) for e, o in ((one, left), (other, right)))
    found: Any
    if sign in ("=", "!="):
        found = (one == other) if nan_one is None or nan_other is None else (one == other) | (nan_one & nan_other)
        return found if sign == "=" else ~found
    if sign in ("<", ">="):
        one, other, nan_one, nan_other = other, one, nan_other, nan_one
    found = one > other
    if nan_one is not None:
        found |= nan_one if nan_other is None else nan_one & ~nan_other
    if nan_one is not None or nan_other is not None:
        found = pc.if_else(one.is_null() | other.is_null(), pa.scalar(None, pa.bool_()), found)
    return ~found if sign in ("<=", ">=") else found


def _nan(expression: pc.Expression, operand: _Operand) -> pc.Expression | None:
    """An expression that is true where a value is NaN; None for operands that cannot be NaN."""
    return pc.is_nan(expression) if operand.floats and operand.value is None else None
