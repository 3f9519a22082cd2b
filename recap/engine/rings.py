"""Squares of decoded images in shared memory: one ring for each geometry, one behind the other."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from recap.data.images import EncodedImage
from recap.engine.decode import Geometry, decode_all


class Rings:
    """places: of every ring. views: uint8 [places, size, size, 3] for each geometry."""

    def __init__(self, fd: int, geometries: Sequence[Geometry], places: int) -> None:
        self.places, self._geometries = places, list(geometries)
        memory = np.frombuffer(mmap.mmap(fd, self.bytes(geometries, places)), np.uint8)
        self.views: list[np.ndarray] = []
        start = 0
        for geometry in geometries:
            shape = (places, geometry.size, geometry.size, 3)
            self.views.append(memory[start : start + int(np.prod(shape))].reshape(shape))
            start += int(np.prod(shape))

    @staticmethod
    def bytes(geometries: Sequence[Geometry], places: int) -> int:
        return sum(places * geometry.size**2 * 3 for geometry in geometries)

    def fill(self, place: int, encoded: EncodedImage, fast: bool) -> str:
        """Decode an image into its place of every ring: what is odd about it. Raises BadImage."""
        squares, note = decode_all(encoded, self._geometries, fast)
        for view, square in zip(self.views, squares, strict=True):
            view[place] = square
        return note
