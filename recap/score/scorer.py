"""What a scorer is. Torch-free: login nodes ask scorers for their fields and what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from recap.data.images import EncodedImage
from recap.engine.decode import Geometry

IMAGE, TEXTS, REFERENCES, BAG = "image", "texts", "references", "bag"
TEXTS_IF_ANY = "texts, where there are any"


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image. squares: uint8 [size, size, 3] by geometry, of those that the scorers asked for."""

    data: bytes
    squares: Mapping[Geometry, np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the file's image, pixels."""
        return EncodedImage(self.data).size


@dataclass(frozen=True, slots=True)
class Scored:
    """One row to score. texts: by name, without those that say nothing. bag: other images, among which its own is
    looked for; None where it is in no bag. columns: values of other columns that scorers read.
    """

    key: str
    picture: Picture | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[str] = ()
    bag: Sequence[bytes] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """Constructed from its settings alone; cheap until `setup`.

    needs: of IMAGE, TEXTS, REFERENCES and BAG, what every row must have for a score at all; TEXTS_IF_ANY: texts that a
        row may have.
    fields: what it writes of a row, by name.
    geometries: squares of the image that it looks at; known after `setup`.
    """

    needs: frozenset[str]
    fields: list[tuple[str, pa.DataType]]
    geometries: list[Geometry]

    def identity(self) -> dict[str, Any]:
        """Digests of what makes the scores besides the settings."""

    def describe(self) -> str:
        """For a dry run, in one line."""

    def setup(self, device: str) -> None:
        """Load models onto `device`."""

    def score(self, rows: Sequence[Scored]) -> list[dict[str, Any]]:
        """Values of `fields` for each row; what is left out is null (the row lacks what it is made of)."""


def named(name: str, text: str) -> str:
    """The field of one text: `words_alt`."""
    return f"{name}_{text}"
