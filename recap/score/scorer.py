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
"""What a scorer may need of a row: see `Scorer.needs`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image. data: the image file. squares: uint8 [size, size, 3] RGB for each geometry in use."""

    data: bytes
    squares: Mapping[Geometry, np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the file's image, pixels."""
        return EncodedImage(self.data).size


@dataclass(frozen=True, slots=True)
class ScoreInput:
    """One row, as scorers get it.

    picture: its decoded image, None where no scorer looks at images or the row has none.
    texts: the texts to score by name, without empty ones.
    references: texts that are known to describe the image.
    bag: image files among which the row's texts must find its own image; None where the row is in no bag.
    columns: values of further columns that scorers read.
    """

    key: str
    picture: Picture | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    references: Sequence[str] = ()
    bag: Sequence[bytes] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """Makes values for rows. Constructed from its settings alone; cheap until `setup`.

    needs: which of IMAGE, TEXTS, REFERENCES and BAG a row must have to be scored. TEXTS_IF_ANY instead of TEXTS: rows
        without texts are scored too.
    fields: name and type of each value that it writes.
    geometries: how the image becomes the squares that it looks at; known after `setup`.
    """

    needs: frozenset[str]
    fields: list[tuple[str, pa.DataType]]
    geometries: list[Geometry]

    def identity(self) -> dict[str, Any]:
        """Digests of what decides the scores besides the settings: the model's files."""

    def describe(self) -> str:
        """One line about it for a dry run."""

    def setup(self, device: str) -> None:
        """Load models onto `device`."""

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        """For each row the values of `fields` by name. A field that is left out is null: the row lacks what it
        needs."""


def text_field(name: str, text: str) -> str:
    """The name of the field that holds one text's value: `words_alt` for the text `alt`."""
    return f"{name}_{text}"
