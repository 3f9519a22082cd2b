"""Fine-tuning from tars: images, and captions from a column of this toolkit or from the tars themselves.

They are read by the reader of the CLIP and DiT trainers (`recap.data.joined`): a sample is a shard and a key, a column
is joined block by block, and its digests are compared with the images. Samples come in the order of a stream plan;
memory holds a window of blocks, never the data set. Every rank reads all tars, since all ranks must know all texts to
agree on how rows are packed; data sets of fine-tuning are small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from hpc.base.errors import UserError
from recap.data.column import ColumnConfig
from recap.data.images import BadImage
from recap.data.inputs import list_shards
from recap.data.joined import Joined, Reader
from recap.data.samples import JoinedDataConfig, SharedInput, blocks_of, check_columns, image_of, opened_columns
from recap.data.streams import StreamPlan
from recap.randomness import draw
from recap.sft.example import Example, decoded
from recap.sft.source import Source
from recap.sft.templates import IMAGE, BadSample

_TEXT = "text"  # the name that the column gets here
_WINDOW = 8  # blocks of 512 samples among which samples are shuffled, and which a rank holds


def data_of(source: Source) -> JoinedDataConfig:
    """The data config of a source's tars and its one column, as the readers of all trainers take it."""
    if not source.column:
        member = source.member.lower().lstrip(".")
        column = ColumnConfig(member=member, field=source.field if member == "json" else None)
    elif (Path(source.column) / "submissions").is_dir():
        column = ColumnConfig(run=source.column, field=source.field)
    else:
        column = ColumnConfig(folder=source.column, field=source.field)
    columns = {_TEXT: column}
    return JoinedDataConfig(shards=[source.path], columns=columns, keep=source.keep, streams=1, window=_WINDOW)


def check(where: str, source: Source) -> None:
    """UserError where tars do not exist or cannot be read in ranges, or the column lacks some of them."""
    data = data_of(source)
    try:
        check_columns(data, [_TEXT])
    except UserError as error:
        raise UserError(f"config: `{where}`: {error}") from error


class Tars:
    """A source of tars. Each sample is one question and its caption, in the order of the plan, epoch by epoch.

    Args:
        shared: files that rank 0 made; None: index and columns are read here, and kept in memory.
    """

    def __init__(self, source: Source, seed: int, shared: SharedInput | None) -> None:
        self._prompts, self._seed, self._limit = source.prompts, seed, source.samples
        self._data = data_of(source)
        self._shared = shared
        self.manifests = shared.digests() if shared else {}
        if shared is None:
            check_columns(self._data, [_TEXT])
        blocks = blocks_of(self._data, [] if shared else list_shards(self._data), shared)
        if not blocks.samples:
            raise UserError(f"data: the tars of {source.path} hold no sample")
        self.damaged = len(blocks.damaged())  # number of damaged tars, whose samples before the damage are used
        self.plan = StreamPlan(blocks, seed, self._data.streams, self._data.window)
        self._reader: Reader | None = None  # opened by the first `at`, since it starts threads

    def __len__(self) -> int:
        """Samples of an epoch."""
        return min(self.plan.epoch_size, self._limit or self.plan.epoch_size)

    def at(self, position: int) -> Example:
        """The sample at a position of the endless stream. A sample without a caption is replaced by another of its
        window.

        Raises:
            BadSample: the sample cannot be used.
            UserError: tars and column do not belong together.
        """
        if self._limit:
            position %= len(self)  # `samples` of the source: only the first ones, repeatedly
        if self._reader is None:
            self._reader = open_reader(self.plan, self._data, self._shared)
        slot = self._reader.place(position)
        passed, found = next((n, c) for n, c in enumerate(slot.candidates()) if c.problem or _said(c))
        if found.problem:
            raise BadSample(found.problem, f"{found.name}: in the tar")
        prompt = self._prompts[draw(self._seed, "prompt", slot.epoch, found.name) % len(self._prompts)]
        turns = [("user", f"{IMAGE}\n{prompt}"), ("assistant", _said(found))]
        return Example(found.name, turns, [found], passed=passed)

    def image(self, handle: Any) -> Image.Image:
        """The image of a sample, RGB. BadSample where it is missing or damaged."""
        try:
            data = image_of(handle, self._data)
        except BadImage as error:
            raise BadSample(error.reason, f"{handle.name}: {error.detail}") from error
        return decoded(data, handle.name)


def open_reader(plan: StreamPlan, data: JoinedDataConfig, shared: SharedInput | None = None) -> Reader:
    columns = opened_columns(data, list(data.columns), shared)
    return Reader(plan, columns, data.readers, images=data.image)


def _said(sample: Joined) -> str:
    """A sample's caption, "" where it has none."""
    text = sample.columns[_TEXT]
    return text.strip() if isinstance(text, str) else ""
