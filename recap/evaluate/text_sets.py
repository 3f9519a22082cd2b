"""Captions and reference texts of any data set: of a run, of its export, or of a folder of column files.

A sample is a shard and a key. Exports know no shards: they are joined by key, where keys do not repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.errors import UserError
from hpc.operator import OK
from hpc.published import Published

CAPTIONS = ("caption", "re_caption", "text")
"""Fields that hold a caption: of caption runs, of their exports, of other columns. The first that is there counts."""
REFERENCES = ("references", "captions", "text", "org_caption", "caption")
"""Fields that hold human texts: a text, or a list of them."""

Sample = tuple[str, str]


@dataclass
class TextSet:
    """texts: by (shard, key), one or several a sample. left_out: rows that are not ok, or have no text."""

    place: Path
    texts: dict[Sample, list[str]] = field(default_factory=dict)
    left_out: int = 0

    @property
    def shards(self) -> set[str]:
        return {shard for shard, _ in self.texts}

    def by_key(self) -> dict[Sample, list[str]]:
        """As if all lay in one shard. UserError where keys repeat."""
        found: dict[Sample, list[str]] = {}
        for (shard, key), texts in self.texts.items():
            if ("", key) in found:
                raise UserError(
                    f"evaluate: key {key} stands in several shards of {self.place} (one is {shard}), and captions and "
                    "references have no shards in common: they cannot be joined by key. Name run directories or "
                    "folders of <shard>.parquet on both sides."
                )
            found["", key] = texts
        return found


def read(place: Path, fields: Sequence[str]) -> TextSet:
    """The texts of the first of `fields` that is there.

    Raises:
        UserError: there is nothing of the kind at `place`.
    """
    found = TextSet(place)
    for shard, table in _tables(place):
        name = next((name for name in fields if name in table.column_names), None)
        if name is None or "key" not in table.column_names:
            raise UserError(
                f"evaluate: {place} has no texts: no field key with one of {', '.join(fields)} among "
                f"{', '.join(table.column_names)}."
            )
        states = table["status"].to_pylist() if "status" in table.column_names else [OK] * len(table)
        for key, value, state in zip(table["key"].to_pylist(), table[name].to_pylist(), states, strict=True):
            texts = [value] if isinstance(value, str) else list(value or [])
            if state != OK or not any(texts):
                found.left_out += 1
                continue
            found.texts.setdefault((shard, str(key)), []).extend(text for text in texts if text)
    if not found.texts:
        raise UserError(f"evaluate: {place} holds no text: {found.left_out:,} rows are empty or not ok.")
    return found


def joined(captions: TextSet, references: TextSet) -> tuple[dict[Sample, str], dict[Sample, list[str]]]:
    """Captions and references by the same names of samples. UserError where no sample is on both sides."""
    said, wanted = captions.texts, references.texts
    if not captions.shards & references.shards:
        said, wanted = captions.by_key(), references.by_key()
    if not said.keys() & wanted.keys():
        examples = " and ".join("/".join(filter(None, next(iter(side)))) for side in (said, wanted))
        raise UserError(
            f"evaluate: no sample of {captions.place} has a reference in {references.place} (samples look like "
            f"{examples}). Are they of the same data set?"
        )
    return {sample: texts[0] for sample, texts in said.items()}, wanted


def _tables(place: Path) -> Iterator[tuple[str, pa.Table]]:
    """(shard, rows); the shard is "" in exports."""
    if (place / "submissions").is_dir():
        yield from ((shard.shard.id, shard.table()) for shard in Published(place))
        return
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise UserError(f"evaluate: {place} is no run directory, and there are no parquet files in it")
    for path in files:
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"evaluate: {path} cannot be read: {error}") from error
        yield "" if "re_caption" in table.column_names else path.stem, table
