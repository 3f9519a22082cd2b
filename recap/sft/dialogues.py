"""Reads JSON files of conversations (`recap.sft.dialogue_rows`): a list of rows, or one row a line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from hpc.base.errors import UserError
from recap.sft import dialogue_rows
from recap.sft.example import Example, decoded
from recap.sft.image_store import ImageStore
from recap.sft.source import Source
from recap.sft.templates import BadSample, check_turns

_FORMS = {"llava": "LLaVA's", "sharegpt": "ShareGPT's", "messages": "messages'"}
_LOOKED_AT = 16  # rows that are parsed at launch, to check that a file holds conversations
_HEAD = 4 << 20  # characters that are read for these rows
_BETWEEN = re.compile(r"[\s,\[]*")  # characters that may come before a row


class Dialogues:
    """The conversations of a file, and the images that they name."""

    def __init__(self, source: Source) -> None:
        self._form = _FORMS[source.kind]
        self._rows = _read(source)
        self._store = ImageStore(source.images)

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, epoch: int) -> Example:
        return dialogue_rows.example(self._rows[index], index, self._form)

    def image(self, handle: Any) -> Image.Image:
        if isinstance(handle, bytes):
            return decoded(handle, "an image inside the JSON")
        return decoded(self._store.read(handle), handle)


def check(where: str, source: Source) -> None:
    """UserError where none of a file's first rows can be learned from: not their form, or their images are not there.

    Images are looked for in folders; archives are listed when the training starts.
    """
    store = ImageStore(source.images) if not source.images or Path(source.images).is_dir() else None
    reasons = []
    for index, row in enumerate(_first(source)):
        try:
            found = dialogue_rows.example(row, index, _FORMS[source.kind])
            check_turns(found.turns)
            for handle in found.images:
                if store and isinstance(handle, str):
                    store.read(handle)
            return
        except BadSample as error:
            reasons.append(str(error))
    if not reasons:
        raise UserError(f"config: `{where}.path`: {source.path} holds no conversation")
    raise UserError(
        f"config: `{where}`: none of the first {len(reasons)} rows of {source.path} can be learned from; the first: "
        f"{reasons[0]}. docs/training.md shows the forms that are read; images are looked up in `images`."
    )


def _read(source: Source) -> list[Any]:
    try:
        return _rows(source.path, Path(source.path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _first(source: Source) -> list[Any]:
    """The first rows; a file of gigabytes is not read for them."""
    try:
        with open(source.path, encoding="utf-8-sig") as file:
            text = file.read(_HEAD)
        if len(text) < _HEAD:
            return _rows(source.path, text)[:_LOOKED_AT]
        decoder, at = json.JSONDecoder(), 0
        rows: list[Any] = []
        while len(rows) < _LOOKED_AT:
            try:
                row, at = decoder.raw_decode(text, _BETWEEN.match(text, at).end())  # type: ignore[union-attr]
            except ValueError:  # the head ends within it, unless it is the first
                if rows:
                    break
                raise
            rows.append(row)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error
    return rows


def _rows(path: str, text: str) -> list[Any]:
    if path.endswith(".jsonl") or not text.lstrip().startswith("["):
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return json.loads(text)


def _unreadable(source: Source, error: Exception) -> UserError:
    form = _FORMS[source.kind]
    return UserError(
        f"data: {source.path} cannot be read as {form} JSON ({error}). Write a list of rows, or a row a line."
    )
