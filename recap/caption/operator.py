"""The captioning operator: webdataset tars in, one column of captions out. Torch-free until `setup`."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import semantic
from hpc.operator import FAILED, OK, SKIPPED, Column, Damage, Item, Row, Shard
from recap.data.image_version import VERSION_2
from recap.data.inputs import DataConfig, list_shards, placeholder_digests
from recap.data.pictures import find_image, read_items
from recap.data.same_image import FIELD
from recap.data.tars import READING_2, Sample
from recap.data.texts import LONGEST_TEXT, TextMember, check_key
from recap.engine import Caption, CaptionerConfig, Engine, Request, check, load_engine, loadable
from recap.engine.chat import TRIES
from recap.engine.identity import captioner_identity
from recap.engine.lint import lint
from recap.engine.provenance import check_served, in_words, made_by
from recap.model_files import model_folder

_ALTERNATIVE = pa.struct(
    [("format", pa.string()), ("caption", pa.string()), ("tokens", pa.int32()), ("finish", pa.string())]
)

FIELDS: list[tuple[str, pa.DataType]] = [
    ("sha256", pa.string()),  # of the image file's bytes, null where there is no image
    (FIELD, pa.string()),  # the same, as every column of ours that is made from an image calls it
    ("text", pa.string()),  # the original text
    ("caption", pa.string()),
    ("tokens", pa.int32()),  # generated, the end token not counted
    ("finish", pa.string()),  # stop | length
    ("format", pa.string()),  # name of the prompt format, null where there is one prompt
    ("lint", pa.list_(pa.string())),  # names of what looks wrong with the caption
    ("alternatives", pa.list_(_ALTERNATIVE)),  # the other formats' captions (captioner.formats: all)
]


@dataclass
class CaptionConfig:
    """Config keys of a captioning job."""

    column: str = semantic("recap", "name of the column that is made")
    data: DataConfig = field(default_factory=DataConfig)
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        if Path(self.captioner.model).is_dir() and self.captioner.model:
            self.captioner.model = os.path.abspath(self.captioner.model)


REMEMBERED = 1 << 15  # captions kept for copies of an image: several shards' worth
PLACEHOLDER = "image: placeholder"  # of an image that `data.placeholders` names


@dataclass(frozen=True, slots=True)
class Picture:
    """One sample as read from its tar. `note` is what is odd but does not prevent a caption, `reason` what does."""

    image: bytes
    sha256: str | None
    text: str | None
    note: str = ""
    reason: str = ""
    detail: str = ""


class CaptionOperator:
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = CaptionConfig
    version: ClassVar[int] = 2
    by_rule: ClassVar[frozenset[str]] = frozenset({PLACEHOLDER})
    changes: ClassVar[dict[int, str]] = {
        2: f"{VERSION_2}; {READING_2}; backend=transformers gives models other than LLaVA no second BOS"
    }

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config
        try:
            check(config.captioner)
        except ValueError as error:
            raise UserError(f"config: {error}") from error
        self._text = TextMember.named(config.data.text)
        self._engine: Engine | None = None
        self._flying: dict[int, Item] = {}
        self._finished: list[Row] = []
        self._number = 0
        self._placeholders = placeholder_digests(config.data)
        # Copies of an image are captioned once: those that wait for the first, and what became of earlier ones.
        self._copies: dict[Hashable, list[Item]] = {}
        self._known: OrderedDict[Hashable, Caption] = OrderedDict()
        self._refused: dict[Hashable, tuple[str, str]] = {}

    # --- what a login node asks ---------------------------------------------------------------

    def continues(self, planned: Iterable[Shard]) -> None:
        self.config.data.keep_root(planned)

    def plan(self) -> list[Shard]:
        shards = list_shards(self.config.data)
        check_key("data.text", self._text, shards)
        return shards

    def identity(self) -> dict[str, Any]:
        try:
            loadable.check(self.config.captioner)
            made_with = captioner_identity(self.config.captioner)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"config: {error}") from error
        if self._placeholders:
            made_with["placeholders"] = hashlib.sha256("\n".join(sorted(self._placeholders)).encode()).hexdigest()
        return made_with

    def describe(self) -> list[tuple[str, str]]:
        captioner = self.config.captioner
        asked = f"{len(captioner.prompts)} prompt formats" if captioner.prompts else f'prompt "{captioner.prompt}"'
        served = captioner.backend == "openai"
        precision = "" if served else f" · {captioner.precision}"
        lines = [
            ("captioner", f"{in_words(self.made_by())} · {captioner.backend}{precision}"),
            ("", f"{asked} · {captioner.decoding}, {captioner.max_tokens} tokens"),
        ]
        if told := self._ask_endpoint() if served else "":
            lines.append(("", told))
        if self._placeholders:
            lines.append(("", f"{len(self._placeholders):,} placeholder images are skipped"))
        if self.config.data.expected == "auto" and any("://" in pattern for pattern in self.config.data.shards):
            lines.append(("", "samples are not counted beforehand on remote stores (data.expected=stats does)"))
        return lines

    def _ask_endpoint(self) -> str:
        try:
            return check_served(self.config.captioner)
        except ValueError as error:
            raise UserError(f"config: {error}") from error

    def made_by(self) -> dict[str, Any]:
        return made_by(self.config.captioner)

    def column(self) -> Column:
        return Column(self.config.column, FIELDS)

    def preflight(self) -> list[str]:
        """The model's files can be read on this node."""
        if self.config.captioner.backend == "openai":
            return []
        try:
            folder = model_folder(self.config.captioner.model)
            for path in folder.glob("*.safetensors"):
                with path.open("rb") as file:
                    file.read(1)
        except OSError as error:
            return [f"model: {error}"]
        lacking = loadable.packages(self.config.captioner, folder)
        return [f"model: {lacking}"] if lacking else []

    # --- what an engine process asks ----------------------------------------------------------

    def setup(self, device: str) -> None:
        self._engine = load_engine(self.config.captioner, device)

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return read_items(shard, self.config.data, self._picture)

    def _picture(self, sample: Sample) -> tuple[Picture, int]:
        found = find_image(sample, self.config.data.image)
        text, note = self._text.read(sample.members, sample.odd, LONGEST_TEXT)
        if found.image is None:
            return Picture(b"", None, text, reason=found.reason, detail=found.detail), 0
        digest = hashlib.sha256(found.image).hexdigest()
        return Picture(found.image, digest, text, note), len(found.image)

    def want(self) -> int:
        return self._running().want()

    def put(self, item: Item) -> None:
        picture: Picture = item.payload
        reason = PLACEHOLDER if picture.sha256 in self._placeholders else picture.reason
        if reason:
            self._finished.append(self._row(item, SKIPPED, reason, picture.detail))
            return
        same = self._same(item)
        if same in self._refused:
            self._finished.append(self._row(item, *self._refused[same]))
        elif same in self._known:
            self._known.move_to_end(same)
            self._finished.append(self._captioned(item, self._known[same]))
        elif same in self._copies:
            self._copies[same].append(item)
        else:
            self._copies[same] = []
            self._number += 1
            self._flying[self._number] = item
            self._running().put(Request(self._number, picture.image, picture.text or "", item.key))

    def _same(self, item: Item) -> Hashable:
        """Equal for two samples iff their captions are equal by construction: what a caption depends on."""
        captioner = self.config.captioner
        formats = [f.text for f in captioner.prompts.values()] or [captioner.prompt]
        by_chance = captioner.decoding != "greedy" or (captioner.formats == "choose" and len(formats) > 1)
        alt = item.payload.text if any("{alt}" in text for text in formats) else None
        return item.payload.sha256, alt, item.key if by_chance else None

    def poll(self, timeout: float) -> list[Row]:
        rows, self._finished = self._finished, []
        if self._flying:
            for caption in self._running().poll(0.0 if rows else timeout):
                item = self._flying.pop(caption.id)
                same = self._same(item)
                rows += [self._captioned(i, caption) for i in (item, *self._copies.pop(same))]
                if not caption.transient:
                    self._known[same] = caption
                    if len(self._known) > REMEMBERED:
                        self._known.popitem(last=False)
        return rows

    def waiting(self) -> str:
        """What all captions wait for: a server that is away. "" where there is none."""
        return getattr(self._engine, "waiting", "")

    def longest_wait(self) -> tuple[float, str]:
        """Seconds that one sample may wait for a server before that counts as away, and the key that sets them."""
        if self.config.captioner.backend != "openai":
            return 0.0, ""
        return TRIES * self.config.captioner.endpoint_timeout_s, "captioner.endpoint_timeout_s"

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        if not item.payload.reason:
            self._refused[self._same(item)] = (status, reason)  # its copies would kill the engine too
        return self._row(item, status, reason)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def next_steps(self, run: str) -> list[str]:
        return [
            f"python -m recap.report {run} --text     a few captions here (without --text: a page with the images)",
            f"python -m recap.export {run} OUT        parquet for datasets, pandas, duckdb (--webdataset: tars)",
        ]

    def _running(self) -> Engine:
        assert self._engine is not None, "setup() comes first"
        return self._engine

    # --- rows ---------------------------------------------------------------------------------

    def _captioned(self, item: Item, caption: Caption) -> Row:
        """An image that cannot be decoded is skipped; an engine that fails on a good one is a failure."""
        if caption.reason:
            status = SKIPPED if caption.reason.startswith(("image:", "text:")) and not caption.transient else FAILED
            return self._row(item, status, caption.reason, caption.detail, transient=caption.transient)
        note = "; ".join(filter(None, (item.payload.note, caption.note)))
        return self._row(
            item, OK, note, caption=caption.text, tokens=caption.tokens, finish=caption.finish,
            format=caption.format or None,
            lint=lint(caption.text, self._prompt(caption.format), caption.finish) or None,
            alternatives=[
                {"format": a.format, "caption": a.text, "tokens": a.tokens, "finish": a.finish}
                for a in caption.alternatives
            ] or None,
        )  # fmt: skip

    def _prompt(self, name: str) -> str:
        captioner = self.config.captioner
        return captioner.prompts[name].text if name in captioner.prompts else captioner.prompt

    def _row(
        self, item: Item, status: str, reason: str, detail: str = "", transient: bool = False, **values: Any
    ) -> Row:
        picture: Picture = item.payload
        values |= {"sha256": picture.sha256, FIELD: picture.sha256, "text": picture.text}
        return Row(item.shard, item.index, item.key, status, reason, detail, transient, values)
