"""The sources of conversations and images: JSON files, tars with captions, generated worlds.

Texts are held in memory, generated on demand, or streamed. Images are decoded only by the rank that needs them.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from hpc.base.dotted import load
from hpc.base.errors import UserError
from recap.data.samples import SharedInput
from recap.randomness import draw, place
from recap.sft.dialogues import Dialogues
from recap.sft.example import Conversations, Example
from recap.sft.source import Source
from recap.sft.tars import Tars
from recap.sft.templates import IMAGE


class Corpus:
    """All sources, each `repeat` times, shuffled.

    Sources with random access are concatenated and shuffled by a permutation. Sources of tars have an order of their
    own; their samples are inserted at regular distances.

    Args:
        shared: by `shared_name`, the files that rank 0 made for the sources of tars; others are indexed here.
        name: of this list of sources ("data" or "held_out"), for `shared_name`.
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, shared: Mapping[str, SharedInput] | None = None, name: str = "data"
    ) -> None:
        self._seed = seed
        self._listed = Listed([source for source in sources if source.kind != "columns"], seed)
        self.tars: list[Tars] = []
        self._manifests: dict[str, str] = {}
        self._sizes: list[int] = []  # samples in an epoch of each source of tars, then of all others together
        for number, source in enumerate(sources):
            if source.kind == "columns":
                made = shared_name(name, number)
                self.tars.append(Tars(source, seed + number, (shared or {}).get(made)))
                self._manifests |= {f"{made}/{column}": found for column, found in self.tars[-1].manifests.items()}
                self._sizes.append(len(self.tars[-1]) * source.repeat)
        self._sizes.append(len(self._listed))
        if not len(self):
            raise UserError("data: the sources hold no sample")

    def __len__(self) -> int:
        return sum(self._sizes)

    def at(self, position: int) -> tuple[Example, Conversations | Tars]:
        """(the sample at a position of the endless stream, the source of its images). BadSample where it is
        unusable."""
        part, own = self._part(position)
        if part < len(self.tars):
            return self.tars[part].at(own), self.tars[part]
        epoch, index = place(self._seed, own, len(self._listed))
        source, number = self._listed.find(index)
        return source.example(number, epoch), source

    def digest(self) -> list[str]:
        """Digests of the samples of each source of tars and their order."""
        return [tars.plan.digest for tars in self.tars]

    def manifests(self) -> dict[str, str]:
        """Digests of the manifests of the tars' columns, by the source's `shared_name`."""
        return self._manifests

    def _part(self, position: int) -> tuple[int, int]:
        """(number of the part that a position belongs to, the position in that part's own endless stream).

        The parts are interleaved evenly: a position belongs to a part where the rounded share of the part in the
        positions so far goes up by one.
        """
        epoch, offset = divmod(position, len(self))
        total = len(self)
        for part, size in enumerate(self._sizes):
            before = offset * size // total
            if (offset + 1) * size // total > before:
                return part, epoch * size + before
            offset, total = offset - before, total - size
        raise AssertionError("the parts make up the whole")


def shared_name(name: str, number: int) -> str:
    """The name of a source of tars, by its number in the list of sources `name`."""
    return f"{name}-{number}"


class Listed:
    """Sources with random access, concatenated, each `repeat` times."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        self.sources = [_open(source, seed) for source in sources]
        self._sizes = [
            min(len(opened), source.samples or len(opened)) * source.repeat
            for opened, source in zip(self.sources, sources, strict=True)
        ]
        self._single = [size // source.repeat for size, source in zip(self._sizes, sources, strict=True)]
        self._ends = [sum(self._sizes[: n + 1]) for n in range(len(self._sizes))]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[Conversations, int]:
        """(source, index in it) of the sample at `index`."""
        number = bisect.bisect_right(self._ends, index)
        before = self._ends[number] - self._sizes[number]
        return self.sources[number], (index - before) % self._single[number]


def _open(source: Source, seed: int) -> Conversations:
    return World(source, seed) if source.kind == "world" else Dialogues(source)


class World:
    """Generated images with known captions. The source's `path` names a function sample(seed, index) of
    recap.worlds."""

    def __init__(self, source: Source, seed: int) -> None:
        self._sample = load(source.path, "data: `path`")
        self._size, self._prompts, self._seed = source.samples, source.prompts, seed

    def __len__(self) -> int:
        return self._size

    def example(self, index: int, epoch: int) -> Example:
        made = self._sample(self._seed, index)
        picture, caption = (made[1], made[2]) if isinstance(made, tuple) else (made.image, made.caption)
        prompt = self._prompts[draw(self._seed, "prompt", epoch, index) % len(self._prompts)]
        return Example(f"{index:08d}", [("user", f"{IMAGE}\n{prompt}"), ("assistant", caption)], [picture])

    def image(self, handle: Any) -> Image.Image:
        return handle
