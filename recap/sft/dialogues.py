"""Conversations in JSON, as LLaVA, ShareGPT and chat servers write them.

A file is a list of rows, or has a row a line. A row is of one of these forms, whatever the source's kind is called:

    {"id", "image": name or names, "conversations": [{"from": "human" | "gpt" | "system", "value": text}, ...]}
    {"id", "images": names, "messages": [{"role": "user" | "assistant" | "system", "content": text or parts}, ...]}

Parts are {"type": "text", "text"}, {"type": "image"} (the next of the row's names, or its own: "image", "path") and
{"type": "image_url", "image_url": {"url"}} (a name, or the image itself as a data URL). In texts, <image> stands for
one; where no text says so, images stand before the first question. Rows without images are text alone.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from PIL import Image

from hpc.base.errors import UserError
from recap.sft.example import Example, decoded
from recap.sft.image_store import ImageStore
from recap.sft.source import Source
from recap.sft.templates import IMAGE, BadSample

_FORMS = {"llava": "LLaVA's", "sharegpt": "ShareGPT's", "messages": "messages'"}
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "system": "system",
}  # fmt: skip


class Dialogues:
    """See the module's text."""

    def __init__(self, source: Source) -> None:
        path = Path(source.path)
        try:
            text = path.read_text(encoding="utf-8")
            lines = path.suffix == ".jsonl" or not text.lstrip().startswith("[")
            self._rows = [json.loads(line) for line in text.split("\n") if line.strip()] if lines else json.loads(text)
        except (OSError, ValueError) as error:
            raise UserError(f"data: {path} cannot be read as {_FORMS[source.kind]} JSON: {error}") from error
        self._store, self._form = ImageStore(source.images), _FORMS[source.kind]

    def __len__(self) -> int:
        return len(self._rows)

    def example(self, index: int, epoch: int) -> Example:
        row = self._rows[index]
        key = str(row.get("id", index)) if isinstance(row, dict) else str(index)
        try:
            return _read(key, row)
        except (KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise BadSample(f"conversation: not {self._form} format", f"{key}: {error!r}") from error

    def image(self, handle: Any) -> Image.Image:
        if isinstance(handle, bytes):
            return decoded(handle, "a data URL")
        return decoded(self._store.read(handle), handle)


def _read(key: str, row: dict[str, Any]) -> Example:
    names = _names(row.get("image") or row.get("images") or [])
    turns: list[tuple[str, str]] = []
    images: list[Any] = []
    for role, content in _turns(row):
        if isinstance(content, list):
            turns.append((role, _parts(content, names, images)))
            continue
        turns.append((role, _text(content)))
        marks = content.count(IMAGE) if role == "user" else 0
        images += names[:marks]
        del names[:marks]
    if names and not images and turns:  # nothing says where they stand
        first = next((n for n, (role, _) in enumerate(turns) if role == "user"), 0)
        turns[first] = (turns[first][0], f"{IMAGE}\n" * len(names) + turns[first][1])
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    return Example(key, turns, images + names, system)


def _turns(row: dict[str, Any]) -> list[tuple[str, Any]]:
    if "messages" in row:
        return [(_ROLES[turn["role"]], turn["content"]) for turn in row["messages"]]
    return [(_ROLES[turn["from"]], turn["value"]) for turn in row["conversations"]]


def _parts(parts: list[dict[str, Any]], names: list[Any], images: list[Any]) -> str:
    """The text of a message in parts, with a mark for each image; their names, or they themselves, go to `images`."""
    text = ""
    for part in parts:
        if part["type"] == "text":
            text += _text(part["text"])
            continue
        if part["type"] not in ("image", "image_url"):
            raise TypeError(f"a part of type {part['type']!r}")
        url = part.get("image_url")
        own = (url["url"] if isinstance(url, dict) else url) or part.get("image") or part.get("path") or part.get("url")
        images += _names([own]) if own else [names.pop(0)] if names else []
        text += f"{IMAGE}\n"
    return text


def _names(value: Any) -> list[Any]:
    """Names of images, or the bytes of those that are data URLs."""
    given = [value] if isinstance(value, (str, dict)) else list(value)
    found: list[Any] = []
    for item in given:
        name = _text(item["path"] if isinstance(item, dict) else item).removeprefix("file://")
        head, _, data = name.partition(";base64,")
        found.append(base64.b64decode(data, validate=True) if head.startswith("data:") else name)
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
