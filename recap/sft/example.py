"""What a source of conversations gives: texts first, images when they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from recap.data.images import BadImage, EncodedImage
from recap.data.memory import memory_to_decode
from recap.sft.templates import BadSample


@dataclass(frozen=True)
class Example:
    """One conversation.

    images: what `Conversations.image` takes, one per image of the conversation. system: its own system text. passed:
    samples without a caption in whose place it stands.
    """

    key: str
    turns: list[tuple[str, str]]
    images: list[Any]
    system: str | None = None
    passed: int = 0


class Conversations(Protocol):
    """One source, whose samples can be asked for in any order."""

    def __len__(self) -> int: ...

    def example(self, index: int, epoch: int) -> Example:
        """The texts of a sample. Raises BadSample."""

    def image(self, handle: Any) -> Image.Image:
        """RGB. Raises BadSample where it is missing or damaged."""


def decoded(data: bytes, name: str) -> Image.Image:
    """An image file's picture, RGB. Raises BadSample. name: for the particulars."""
    try:
        encoded = EncodedImage(data)
        with memory_to_decode(encoded.cost):
            return encoded.rgb()
    except BadImage as error:
        raise BadSample(error.reason, f"{name}: {error.detail}") from error
