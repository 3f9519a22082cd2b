"""The scoring job: rows of tars and columns in, one column of typed scores out. Torch-free until `setup`.

Images go through the pool of decode processes, once for all scorers: each gets the square that it looks at.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.operator import FAILED, OK, SKIPPED, Column, Damage, Item, Row, Shard
from recap.data.inputs import placeholder_digests
from recap.data.pictures import find_image
from recap.data.rows import JoinedRow, Rows
from recap.data.same_image import FIELD, digest
from recap.data.tar_job import RowsJob
from recap.engine.decode_pool import Decoded, DecodePool
from recap.engine.formats import one_line, said
from recap.generate.engine_job import PLACEHOLDER
from recap.score.scorer import IMAGE, TEXTS, Picture, ScoreInput
from recap.score.scorers import columns_beside, scorers_of
from recap.score.self_retrieval import in_bags
from recap.score.settings import ScoreConfig

TEXT_MISSING = "text: missing"
NOT_FINITE = "score: not a finite number"
_PARTIAL_WAIT_S = 0.05  # how long a batch that is not full waits for further rows
_DECODE_TIMEOUT_S = 60.0  # for one image


@dataclass(frozen=True, slots=True)
class ScorePayload:
    """An item's payload: what is known of a row before its image is decoded.

    image, sha256: the image file and its digest, None where there is none.
    texts, references, columns, bag: as in recap.score.scorer.ScoreInput.
    reason, detail: why the row is skipped; empty where it is scored.
    bag_of: the value of the column `bag.column`; consecutive rows with the same value are one bag.
    """

    image: bytes | None
    sha256: str | None
    texts: Mapping[str, str]
    references: Sequence[str] = ()
    reason: str = ""
    detail: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    bag_of: Any = None
    bag: Sequence[bytes] | None = None


class ScoreOperator(RowsJob):
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = ScoreConfig
    version: ClassVar[int] = 1
    by_rule: ClassVar[frozenset[str]] = frozenset({PLACEHOLDER})

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config
        if config.batch < 1 or config.decode_workers < 0:
            raise UserError("config: `batch` is at least 1, `decode_workers` at least 0.")
        self._placeholders = placeholder_digests(config.data)
        self._scorers = scorers_of(config)
        self._needs_image = any(IMAGE in scorer.needs for scorer in self._scorers)
        self._needs_texts = any(TEXTS in scorer.needs for scorer in self._scorers)
        self._pool: DecodePool | None = None
        self._decoding: dict[int, Item] = {}
        self._ready: deque[tuple[Item, Decoded | None]] = deque()
        self._finished: list[Row] = []
        self._number = 0
        self._last_put = 0.0

    # --- what a login node asks ---------------------------------------------------------------

    @cached_property
    def _rows(self) -> Rows:
        names = [*self.config.texts, *self.config.references, *columns_beside(self.config)]
        return Rows(self.config.data, list(dict.fromkeys(names)), image=self._needs_image)

    def identity(self) -> dict[str, Any]:
        made: dict[str, Any] = {"scorers": [scorer.identity() for scorer in self._scorers]}
        if self._placeholders:
            made["placeholders"] = digest("\n".join(sorted(self._placeholders)).encode())
        if columns := self._rows.identities():
            made["columns"] = columns
        return made

    def describe(self) -> list[tuple[str, str]]:
        lines = [("scores" if not number else "", one.describe()) for number, one in enumerate(self._scorers)]
        texts = f"texts {', '.join(self.config.texts)}" if self.config.texts else "no texts"
        read = (
            "no tar is read"
            if not self._rows.tars
            else "images and texts"
            if self._needs_image
            else "no image is decoded"
        )
        lines += [("input", self._rows.input)] if self._rows.input else []
        return [*lines, ("of", f"{texts} · {read}"), ("fields", ", ".join(n for n, _ in self.column().fields))]

    def made_by(self) -> dict[str, Any]:
        return {}

    def column(self) -> Column:
        fields = [field for scorer in self._scorers for field in scorer.fields]
        return Column(self.config.column, [*fields, (FIELD, pa.string())])

    def preflight(self) -> list[str]:
        """The models' files can be read on this node."""
        try:
            self.identity()
        except (OSError, UserError) as error:
            return [f"model: {error}"]
        return []

    # --- what an engine process asks ----------------------------------------------------------

    def setup(self, device: str) -> None:
        for scorer in self._scorers:
            scorer.setup(device)
        squares = list(dict.fromkeys(square for scorer in self._scorers for square in scorer.geometries))
        if squares:
            self._pool = DecodePool(
                squares[0], 3 * self.config.batch, self.config.decode_workers, self.config.max_pixels, fast=False,
                timeout_s=_DECODE_TIMEOUT_S, beside=squares[1:],
            )  # fmt: skip

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        items = self._rows.read(shard, self._payload)
        return in_bags(items, self.config.bag.rows) if self.config.bag else items

    def _payload(self, row: JoinedRow) -> tuple[ScorePayload, int]:
        image, reason, detail = None, "", ""
        if self._needs_image and row.sample is not None:
            found = find_image(row.sample, self.config.data.image)
            image, reason, detail = found.image, found.reason, found.detail
        texts = {name: text for name in self.config.texts if (text := one_line(said(row.columns[name])))}
        references = [line for name in self.config.references for line in _lines(row.columns[name])]
        if self._needs_texts and not texts and not reason:
            reason, detail = TEXT_MISSING, f"column {', '.join(self.config.texts)}"
        sha256 = digest(image) if image is not None else row.image
        if sha256 in self._placeholders:
            reason, detail = PLACEHOLDER, ""
        size = len(image or b"") + sum(map(len, texts.values()))
        beside = {name: row.columns[name] for name in columns_beside(self.config)}
        bag_of = beside.get(self.config.bag.column) if self.config.bag else None
        return ScorePayload(image, sha256, texts, references, reason, detail, beside, bag_of), size

    def want(self) -> int:
        return 3 * self.config.batch - len(self._decoding) - len(self._ready)

    def put(self, item: Item) -> None:
        self._last_put = time.monotonic()
        given: ScorePayload = item.payload
        if given.reason:
            self._finished.append(self._row(item, SKIPPED, given.reason, given.detail))
        elif self._pool is None:
            self._ready.append((item, None))
        else:
            self._number += 1
            self._decoding[self._number] = item
            self._pool.put(self._number, given.image or b"")

    def poll(self, timeout: float) -> list[Row]:
        rows, self._finished = self._finished, []
        if self._pool is not None:
            idle = not rows and len(self._ready) < self.config.batch
            for decoded in self._pool.poll(min(timeout, 0.02) if idle else 0.0):
                rows += self._take_decoded(self._decoding.pop(decoded.id), decoded)
        full = len(self._ready) >= self.config.batch
        late = self._ready and not self._decoding and time.monotonic() - self._last_put >= _PARTIAL_WAIT_S
        if full or late:
            batch = [self._ready.popleft() for _ in range(min(self.config.batch, len(self._ready)))]
            return rows + self._score(batch)
        if not rows and self._pool is None:
            time.sleep(min(timeout, 0.002))
        return rows

    def _take_decoded(self, item: Item, decoded: Decoded) -> list[Row]:
        """Put a decoded image in line for scoring; where decoding failed, the row that says so."""
        if not decoded.reason:
            self._ready.append((item, decoded))
            return []
        assert self._pool is not None
        self._pool.release(decoded.place)
        status = FAILED if decoded.transient else SKIPPED
        return [self._row(item, status, decoded.reason, decoded.detail, transient=decoded.transient)]

    def _score(self, batch: Sequence[tuple[Item, Decoded | None]]) -> list[Row]:
        rows = [self._to_score(item, decoded) for item, decoded in batch]
        values: list[dict[str, Any]] = [{} for _ in rows]
        for scorer in self._scorers:
            for held, new in zip(values, scorer.score(rows), strict=True):
                held.update(new)
        found = []
        for (item, decoded), made in zip(batch, values, strict=True):
            if decoded is not None and self._pool is not None:
                self._pool.release(decoded.place)
            odd = [name for name, value in made.items() if isinstance(value, float) and not math.isfinite(value)]
            made |= dict.fromkeys(odd)
            status, reason = (SKIPPED, NOT_FINITE) if odd else (OK, decoded.note if decoded else "")
            found.append(self._row(item, status, reason, ", ".join(odd), made))
        return found

    def _to_score(self, item: Item, decoded: Decoded | None) -> ScoreInput:
        given: ScorePayload = item.payload
        picture = None
        if decoded is not None and self._pool is not None and given.image is not None:
            views = self._pool.rings.views
            squares = {one: view[decoded.place] for one, view in zip(self._pool.geometries, views, strict=True)}
            picture = Picture(given.image, squares)
        return ScoreInput(item.key, picture, given.texts, given.references, given.bag, given.columns)

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        return self._row(item, status, reason)

    @staticmethod
    def _row(
        item: Item, status: str, reason: str, detail: str = "", values: Mapping[str, Any] | None = None,
        transient: bool = False,
    ) -> Row:  # fmt: skip
        made = {**(values or {}), FIELD: item.payload.sha256}
        return Row(item.shard, item.index, item.key, status, reason, detail, transient, made)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()

    def next_steps(self, run: str) -> list[str]:
        numbers = [name for name, kind in self.column().fields if pa.types.is_floating(kind)]
        made = f"python -m recap.select.statistics {run} --top {numbers[0]}=0.3 --out edges.json" if numbers else ""
        return [f"{made}     for configs/select/*"] if made else []


def _lines(value: Any) -> list[str]:
    return [line for line in one_line(said(value)).splitlines() if line]
