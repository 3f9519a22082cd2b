"""Reads the CLIP features of images and captions that a job of configs/score/features.yaml published, for retrieval.

Torch-free: the job ran the CLIP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from hpc.base.errors import UserError
from hpc.operator import OK
from hpc.run.published import Published
from recap.data.headers import without_dot_slash
from recap.evaluate.text_sets import Sample, unfinished

_SAME = 1e-6  # cosines that differ by less are equal: the last bits depend on an image's batch


@dataclass
class Features:
    """The features of a run.

    images, texts: float32 [D] of length 1, by (shard, key). A sample without a caption has no text.
    cut: samples whose caption is longer than the CLIP's context.
    unread: samples whose image could not be read.
    unfinished: number of shards that the run has not published.
    """

    run: Path
    images: dict[Sample, np.ndarray] = field(default_factory=dict)
    texts: dict[Sample, np.ndarray] = field(default_factory=dict)
    cut: set[Sample] = field(default_factory=set)
    unread: set[Sample] = field(default_factory=set)
    unfinished: int = 0

    @property
    def account(self) -> dict[str, int | float]:
        """The counts that are reported beside every number."""
        counts: dict[str, int | float] = {"images": len(self.images), "unread": len(self.unread)}
        counts |= unfinished(self.unfinished)
        if not self.texts:
            return counts
        return counts | {
            "captions": len(self.texts),
            "cut": len(self.cut),
            "cut_share": len(self.cut) / len(self.texts),
        }

    def keys(self) -> dict[str, Sample]:
        """All samples by key alone. UserError where a key is in several shards."""
        samples = [*self.images, *self.unread]
        seen = Counter(key for _, key in samples)
        if twice := next((key for key, count in seen.items() if count > 1), None):
            raise UserError(f"evaluate: key {twice} stands in several shards of {self.run}: images are named by keys.")
        return {key: (shard, key) for shard, key in samples}


def read(run: Path, clip: str | None = None, text: str | None = None, captions: bool = False) -> Features:
    """The features of a run.

    Args:
        clip, text: which of its CLIPs and of its texts, where it has several.
        captions: whether features of texts are needed.

    Raises:
        UserError: it has no features, has several and none is named, or nothing is published yet.
    """
    published = Published(run)
    found = Features(run, unfinished=len(published.missing()))
    for shard in published:
        table = shard.table()
        image, caption = _fields(table.schema, run, clip, text, captions)
        cut = f"cut_{caption}"
        for row in table.select(["key", "status", image, *([caption, cut] if caption else [])]).to_pylist():
            sample = (shard.shard.id, without_dot_slash(row["key"]))
            if row["status"] != OK or row[image] is None:
                found.unread.add(sample)
                continue
            found.images[sample] = np.array(row[image], np.float32)
            if caption and row[caption] is not None:
                found.texts[sample] = np.array(row[caption], np.float32)
                found.cut |= {sample} if row[cut] else set()
    if not found.images:
        raise UserError(f"evaluate: no row of {run} has features ({len(found.unread):,} images could not be read).")
    return found


def _fields(schema: pa.Schema, run: Path, clip: str | None, text: str | None, needed: bool) -> tuple[str, str]:
    """(field of the images' features, field of the texts' features or "" where there are none)."""
    lists = [one.name for one in schema if pa.types.is_list(one.type) and pa.types.is_floating(one.type.value_type)]
    said = [name for name in lists if f"cut_{name}" in schema.names]
    image = _one_of([name for name in lists if name not in said], clip, run, "--clip", "features of images")
    own = [name for name in said if name.startswith(f"{image}_")]
    if not own and text is None and not needed:
        return image, ""
    return image, _one_of(own, f"{image}_{text}" if text else None, run, "--text", "features of texts", f"{image}_")


def _one_of(names: list[str], wanted: str | None, run: Path, flag: str, what: str, before: str = "") -> str:
    said = ", ".join(name.removeprefix(before) for name in names) or "none"
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return wanted
    hint = "Make them by configs/score/features.yaml." if not names else f"Name one of them with {flag}."
    raise UserError(f"evaluate: {run} has these {what}: {said}. {hint}")


def found_within(text: np.ndarray, images: np.ndarray, own: int, most: int = 1) -> float:
    """1 where a text's own image is among the `most` nearest images, else 0. Where other images are equally near, the
    probability of that if ties were broken at random.

    Args:
        text: [D]. images: [N, D], all of length 1. own: number of the text's own image.

    >>> found_within(np.array([1.0, 0.0]), np.array([[0.6, 0.8], [0.6, 0.8], [0.0, 1.0]]), own=0)
    0.5
    """
    cosines = images @ text
    ahead = int((cosines > cosines[own] + _SAME).sum())
    equal = int((np.abs(cosines - cosines[own]) <= _SAME).sum())
    return min(max((most - ahead) / equal, 0.0), 1.0)


def stacked(features: dict[Sample, np.ndarray], samples: Iterable[Sample]) -> np.ndarray:
    """The features of samples as one float32 array [N, D]."""
    return np.stack([features[sample] for sample in samples])
