"""Plain values into dataclasses, with a hint for each key that is unknown."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from dataclasses import MISSING
from typing import Any

from hpc.base.errors import UserError


def names(schema: type) -> set[str]:
    """The names of a dataclass's fields."""
    return {f.name for f in dataclasses.fields(schema)}


def structured(schema: type, values: dict[str, Any], source: str) -> Any:
    """A dataclass of this schema from plain values. Raises UserError with a hint for a key that it does not know."""
    check_keys(schema, values, source, "")
    from omegaconf import OmegaConf  # a fifth of a second that commands without a config need not spend
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(_defaults(schema), OmegaConf.create(_for_omegaconf(values, source, "")))
        made = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
        raise UserError(f"config: {source}: `{key}`: {str(error.msg or error).splitlines()[0]}") from error
    return made


@functools.cache
def _defaults(schema: type) -> Any:
    """A schema with its defaults. `merge` copies it, so that it is made once: a pipeline asks for it many times."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _for_omegaconf(value: Any, source: str, key: str) -> Any:
    """The values in a form that OmegaConf takes over without changing their meaning. `${...}` is escaped: for us it is
    text, and no resolver may read the environment. Large whole floats become integers, since a count may be written as
    `2.56e9`. Raises UserError for `???`, which stands for a value that somebody has yet to write.
    """
    if isinstance(value, dict):
        return {k: _for_omegaconf(v, source, f"{key}.{k}".strip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [_for_omegaconf(v, source, f"{key}.{number}") for number, v in enumerate(value)]
    if isinstance(value, float) and value.is_integer() and abs(value) >= 1000:
        return int(value)
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\\*\?{3}", value):
        raise UserError(f"config: {source}: `{key}`: ??? stands for a value that is still to be written. Write it.")
    # Backslashes before `${` are doubled to stay what they are; one more escapes the `${`.
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)


def check_keys(schema: type, values: dict[str, Any], source: str, prefix: str) -> None:
    """Raise UserError for a key that the schema does not have, and for a value that is no list or group of keys where
    the schema wants one; inside groups, and inside lists and mappings of groups, too. Makes one text a list of one
    where a list is wanted.
    """
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        whole = f"{prefix}{key}"
        if key not in hints:
            raise unknown_key(source, whole, str(key), [schema], prefix)
        inner, (container, element) = dataclass_in(hints[key]), _container(hints[key])
        if container is list and isinstance(value, str):
            value = values[key] = [value]  # one pattern is a list of one
        group = inner or element
        parts: list[tuple[Any, str]] = []  # values that must be groups of keys, each with where it stands
        if inner:
            parts = [(value, whole)]
        elif container is not None and value is not None and not isinstance(value, container):
            what = "a list" if container is list else "a group of keys"
            raise UserError(f"config: {source}: `{whole}`: {value!r} is not {what}")
        elif element and value is not None:
            named = value.items() if container is dict else enumerate(value)
            parts = [(part, f"{whole}.{name}" if container is dict else f"{whole}[{name}]") for name, part in named]
        for part, place in parts:
            if isinstance(part, dict) and group is not None:
                check_keys(group, part, source, f"{place}.")
            elif part is not None:
                raise UserError(f"config: {source}: `{place}`: {part!r} is not a group of keys")


def _container(hint: Any) -> tuple[type | None, type | None]:
    """(list or dict, the dataclass of its elements) of a type hint; None for what the hint is not."""
    for option in typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,):
        if (origin := typing.get_origin(option)) in (list, dict):
            return origin, dataclass_in(typing.get_args(option)[-1])
    return None, None


def dataclass_in(hint: Any) -> type | None:
    """The dataclass that a type hint is, or has among its options (`X | None`)."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def unknown_key(source: str, whole: str, key: str, schemas: list[type], prefix: str = "") -> UserError:
    """The error for a key that no schema has, with the nearest one that there is.

    Args:
        whole: the dotted key; prefix: what stands in it before its last part, `key`.
    """
    fields = {f.name: f for schema in schemas for f in dataclasses.fields(schema)}
    nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    message = f"config: {source}: `{whole}`: unknown key."
    if nearest:
        found = fields[nearest[0]]
        kind = found.type if isinstance(found.type, str) else getattr(found.type, "__name__", found.type)
        help_text = found.metadata.get("help", "")
        about = f"{kind}{'; ' + help_text if help_text else ''}"
        if found.default is not MISSING:
            about += f"; default {found.default!r}"
        return UserError(f"{message} Did you mean `{prefix}{nearest[0]}` ({about})?")
    return UserError(f"{message} Known here: {', '.join(sorted(fields))}")
