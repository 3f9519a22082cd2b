"""Parses one row of a JSON file of conversations, as LLaVA, ShareGPT and chat servers write it, into turns and images.

A row has one of these forms:

    {"id", "image": name or names, "conversations": [{"from": "human" | "gpt" | "system", "value": text}, ...]}
    {"id", "images": names, "messages": [{"role": "user" | "assistant" | "system", "content": text or parts}, ...]}

Either key may hold turns of either form, and "system" may be beside it. Parts are {"type": "text", "text"},
{"type": "image"} (the next of the row's names, the one of its "index", or its own: "image", "path", "url", "source")
and {"type": "image_url", "image_url": {"url"}}. A turn may have "images" of its own. An image is a name, or the image
itself as a data URL or in base64. In texts, <image> stands for an image; where no text has it, images come before the
first question. Rows without images have text only. Rows that cannot be trained on as intended (videos, tools, answers
of weight 0) are rejected with a reason.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from recap.sft.example import Example
from recap.sft.templates import IMAGE, BadSample

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
    "developer": "system",
}  # fmt: skip
_TURNS = ("messages", "conversations", "conversation")
_NAMES = ("images", "image", "image_path", "image_paths")
_PARTS = {
    "text": "text", "input_text": "text", "output_text": "text", "image": "image", "image_url": "image",
    "input_image": "image",
}  # fmt: skip
_UNSEEN = ("video", "videos", "audio", "audios", "tools", "functions")
# The first letters of JPEG, PNG, WebP and GIF files in base64.
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD")


def example(row: Any, index: int, form: str) -> Example:
    """The conversation of a row. BadSample where it cannot be used.

    Args:
        index: number of the row. form: name of the source's form, for the error's detail.
    """
    key = str(row.get("id", index)) if isinstance(row, dict) else str(index)
    try:
        return _example(key, row)
    except BadSample as error:
        raise BadSample(error.reason, f"{key}: {error.detail}") from error
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadSample(f"conversation: not {form} format", f"{key}: {said}") from error


def _example(key: str, row: dict[str, Any]) -> Example:
    if unseen := next((name for name in _UNSEEN if row.get(name)), None):
        raise BadSample("conversation: holds what is not read", unseen)
    names = _names(row)
    left = list(range(len(names)))  # images that no text has placed yet
    turns: list[tuple[str, str]] = []
    images: list[Any] = []
    for turn in row[next((name for name in _TURNS if name in row), _TURNS[0])]:
        role, text, given = _turn(turn)
        turns.append((role, text))
        for image in given if role == "user" else []:
            number = image if isinstance(image, int) else left[0] if image is None and left else None
            if number is not None:
                images.append(names[number])
                left = [other for other in left if other != number]
            elif image is not None:
                images.append(image)
    others = [names[number] for number in left]
    if others and not images and turns:  # nothing says where the images are
        first = next((n for n, (role, _) in enumerate(turns) if role == "user"), 0)
        turns[first] = (turns[first][0], f"{IMAGE}\n" * len(others) + turns[first][1])
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else _text(row.get("system") or "") or None
    return Example(key, turns, images + others, system)


def _turn(turn: dict[str, Any]) -> tuple[str, str, list[Any]]:
    """(role, text with <image> for each image, images) of a turn. An image is bytes or a name, its number among the
    row's images, or None for the next of these."""
    said = str(turn["role"] if "role" in turn else turn["from"])
    if (role := _ROLES.get(said.strip().lower())) is None:
        raise BadSample("conversation: a turn of an unknown role", said)
    if role == "assistant" and turn.get("weight") == 0:
        raise BadSample("conversation: an answer of weight 0")
    content = turn["content"] if "content" in turn else turn["value"]
    text, given = _joined(content) if isinstance(content, list) else (_text(content), [])
    if own := _names(turn):
        given = own
        text = text if IMAGE in text else f"{IMAGE}\n" * len(own) + text
    return role, text, given or [None] * text.count(IMAGE)


def _joined(parts: list[Any]) -> tuple[str, list[Any]]:
    """(text, images) of a message in parts. Images are where the texts have <image>, else at the place of their
    part."""
    texts, marked = "", ""
    given: list[Any] = []
    for part in parts:
        part = {"text": part} if isinstance(part, str) else part
        kind = _PARTS.get(part["type"]) if part.get("type") else "text" if "text" in part else "image"
        if kind is None:
            raise BadSample("conversation: holds what is not read", f"a part of type {part['type']!r}")
        if kind == "text":
            texts += _text(part["text"])
            marked += part["text"]
            continue
        own = next((part[name] for name in ("image_url", "image", "path", "url", "source") if part.get(name)), None)
        given.append(part.get("index") if own is None else _image(own))
        marked += f"{IMAGE}\n"
    return (texts if IMAGE in texts else marked), given


def _names(holder: dict[str, Any]) -> list[Any]:
    """The images of a row or a turn."""
    given: Any = next((holder[name] for name in _NAMES if holder.get(name)), [])
    return [_image(item) for item in ([given] if isinstance(given, (str, dict)) else given)]


def _image(value: Any) -> str | bytes:
    """The name of an image, or its bytes where the row contains the image itself."""
    if isinstance(value, dict):
        if held := value.get("bytes") or value.get("data"):
            return base64.b64decode(_text(held), validate=True)
        value = value.get("path") or value.get("url")
    name = _text(value).removeprefix("file://")
    head, _, data = name.partition(";base64,")
    if head.startswith("data:"):
        return base64.b64decode(data, validate=True)
    if name.startswith(_BASE64) and len(name) > 64:
        return base64.b64decode(name, validate=True)
    if name.startswith(("http://", "https://")):
        raise BadSample("image: a URL, which is never fetched", name)
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value
