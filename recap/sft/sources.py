"""Where conversations and images come from: JSON files, tars with captions, generated worlds.

Texts are held in memory, made on demand, or streamed; images are decoded only by the rank that needs them.
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
    """All sources, each as often as its `repeat` says, shuffled.

    Those whose samples can be asked for in any order are laid end to end and shuffled by a permutation. Tars have an
    order of their own; their samples stand among the others at regular distances.

    Args:
        shared: what rank 0 found out about the sources of tars, by `shared_name`; those that are not there are
            looked at here. name: of the sources.
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, shared: Mapping[str, SharedInput] | None = None, name: str = "data"
    ) -> None:
        self._seed = seed
        self._listed = Listed([source for source in sources if source.kind != "columns"], seed)
        self.tars: list[Tars] = []
        self._manifests: dict[str, str] = {}
        self._sizes: list[int] = []  # of an epoch: of each of the tars, then of the others
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
        """The sample at a position of the endless stream, and where its images come from. Raises BadSample."""
        part, own = self._part(position)
        if part < len(self.tars):
            return self.tars[part].at(own), self.tars[part]
        epoch, index = place(self._seed, own, len(self._listed))
        source, number = self._listed.find(index)
        return source.example(number, epoch), source

    def digest(self) -> list[str]:
        """Of the samples of tars and their order."""
        return [tars.plan.digest for tars in self.tars]

    def manifests(self) -> dict[str, str]:
        """Digests of what says where the tars' columns lie, by the source's name."""
        return self._manifests

    def _part(self, position: int) -> tuple[int, int]:
        """Which part a position belongs to, and the position in that part's own endless stream: of a line of `total`
        samples, those at which the count of a part's share goes up by one are the part's."""
        epoch, offset = divmod(position, len(self))
        total = len(self)
        for part, size in enumerate(self._sizes):
            before = offset * size // total
            if (offset + 1) * size // total > before:
                return part, epoch * size + before
            offset, total = offset - before, total - size
        raise AssertionError("the parts make up the whole")


def shared_name(name: str, number: int) -> str:
    """Of a source of tars, by its number among the sources called `name`."""
    return f"{name}-{number}"


class Listed:
    """Sources one after another, each as often as its `repeat` says."""

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
        """(source, index in it) of a sample."""
        number = bisect.bisect_right(self._ends, index)
        before = self._ends[number] - self._sizes[number]
        return self.sources[number], (index - before) % self._single[number]


def _open(source: Source, seed: int) -> Conversations:
    return World(source, seed) if source.kind == "world" else Dialogues(source)


class World:
    """Generated pictures whose caption is known: `path` is sample(seed, index) of a module of recap.worlds."""

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
