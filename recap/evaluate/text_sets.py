"""Reads captions and reference texts: of a run, of an export, or of a folder of column files.

A sample is a shard and a key. Where the two sides have no shards in common they are joined by key, or where keys repeat
by key and image.
Where both sides carry the digests of their images these have to agree, as in every other join (recap.data.same_image).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.operator import OK
from hpc.run.published import Published
from recap.data import exported
from recap.data.column import Values
from recap.data.headers import without_dot_slash
from recap.data.same_image import SameImages, digest_field

CAPTIONS = ("caption", "re_caption", "text")
"""Fields that hold a caption: of caption runs, of their exports, of other columns. The first that is there counts."""
REFERENCES = ("references", "captions", "text", "org_caption", "caption")
"""Fields that hold human texts: a text, or a list of them."""

Sample = tuple[str, str]


@dataclass
class TextSet:
    """Texts by sample.

    texts: by (shard, key), one or several. digests: sha256 of the image by (shard, key), where it is known.
    left_out: rows that are not ok, or have no text. unfinished: shards of the run that are not published.
    """

    place: Path
    texts: dict[Sample, list[str]] = field(default_factory=dict)
    digests: dict[Sample, str] = field(default_factory=dict)
    left_out: int = 0
    unfinished: int = 0

    @property
    def shards(self) -> set[str]:
        return {shard for shard, _ in self.texts}

    @property
    def keys_repeat(self) -> bool:
        return len({key for _, key in self.texts}) < len(self.texts)

    def by_key(self) -> TextSet:
        """The same texts with "" as the shard of all. UserError where keys repeat."""
        if self.keys_repeat:
            seen = Counter(key for _, key in self.texts)
            shard, key = next(sample for sample in self.texts if seen[sample[1]] > 1)
            raise UserError(
                f"evaluate: key {key} stands in several shards of {self.place} (one is {shard}), and captions and "
                "references have no shards in common: they cannot be joined by key. Name run directories or "
                "folders of <shard>.parquet on both sides."
            )
        return self._renamed({sample: ("", sample[1]) for sample in self.texts})

    def by_image(self) -> TextSet:
        """The same texts with the image's digest instead of the shard."""
        return self._renamed({sample: (self.digests[sample], sample[1]) for sample in self.texts})

    def _renamed(self, names: dict[Sample, Sample]) -> TextSet:
        texts: dict[Sample, list[str]] = {}
        for sample, name in names.items():
            texts.setdefault(name, []).extend(self.texts[sample])
        digests = {names[sample]: digest for sample, digest in self.digests.items()}
        return TextSet(self.place, texts, digests, self.left_out, self.unfinished)


def read(place: Path, fields: Sequence[str], *, may_be_empty: bool = False) -> TextSet:
    """The texts in the first of `fields` that exists at `place`.

    Args:
        may_be_empty: whether all texts may be empty.

    Raises:
        UserError: there are no such texts at `place`.
    """
    found = TextSet(place, unfinished=len(Published(place).missing()) if (place / "submissions").is_dir() else 0)
    for shard, table in _tables(place):
        name = next((name for name in fields if name in table.column_names), None)
        if name is None or "key" not in table.column_names:
            raise UserError(
                f"evaluate: {place} has no texts: no field key with one of {', '.join(fields)} among "
                f"{', '.join(table.column_names)}."
            )
        states = table["status"].to_pylist() if "status" in table.column_names else [OK] * len(table)
        carried = digest_field(table.schema)
        digests = table[carried].to_pylist() if carried else [None] * len(table)
        rows = zip(table["key"].to_pylist(), table[name].to_pylist(), states, digests, strict=True)
        for key, value, state, digest in rows:
            texts = [value] if isinstance(value, str) else list(value or [])
            if state != OK or not any(text and text.strip() for text in texts):
                found.left_out += 1
                continue
            sample = (shard, without_dot_slash(str(key)))
            if digest and found.digests.setdefault(sample, digest) != digest:
                raise UserError(f"evaluate: {place}: key {key} stands for two images, and no shards tell them apart.")
            found.texts.setdefault(sample, []).extend(text for text in texts if text and text.strip())
    if not found.texts and not may_be_empty:
        raise UserError(f"evaluate: {place} holds no text: {found.left_out:,} rows are empty or not ok.")
    return found


def unfinished(shards: int) -> dict[str, int]:
    """An entry of an account for the unpublished shards of a run; {} where there are none."""
    return {"unfinished_shards": shards} if shards else {}


def join_by_sample(captions: TextSet, references: TextSet) -> tuple[dict[Sample, str], dict[Sample, list[str]]]:
    """(captions, references), by the same samples.

    Raises:
        UserError: no sample is on both sides, or the two sides have different images for one.
    """
    if not captions.shards & references.shards:
        sides = (captions, references)
        whole = all(side.digests.keys() >= side.texts.keys() for side in sides)
        if whole and any(side.keys_repeat for side in sides):
            captions, references = captions.by_image(), references.by_image()
        else:
            captions, references = captions.by_key(), references.by_key()
    both = captions.texts.keys() & references.texts.keys()
    if not both:
        examples = " and ".join("/".join(filter(None, next(iter(side.texts)))) for side in (captions, references))
        raise UserError(
            f"evaluate: no sample of {captions.place} has a reference in {references.place} (samples look like "
            f"{examples}). Are they of the same data set?"
        )
    _check_images(captions, references, sorted(both))
    return {sample: texts[0] for sample, texts in captions.texts.items()}, references.texts


def _check_images(captions: TextSet, references: TextSet, both: list[Sample]) -> None:
    same = SameImages()
    for shard, samples in groupby(both, key=itemgetter(0)):
        group = list(samples)
        columns = {
            str(side.place): Values([], [side.digests.get(sample) for sample in group] if side.digests else None)
            for side in (captions, references)
        }
        same.check(shard or "of the export", [key for _, key in group], [{}] * len(group), columns)


def _tables(place: Path) -> Iterator[tuple[str, pa.Table]]:
    """(shard, rows) of all shards; the shard is "" in exports that do not name shards."""
    if (place / "submissions").is_dir():
        yield from ((shard.shard.id, shard.table()) for shard in Published(place))
        return
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        raise UserError(f"evaluate: {place} is no run directory, and there are no parquet files in it")
    path = files[0]
    try:
        if export := exported.find(str(place)):
            yield from exported.tables(export)
            return
        for path in files:
            table = pq.read_table(path)
            yield "" if "re_caption" in table.column_names else path.stem, table
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"evaluate: {path} cannot be read: {error}") from error
