"""Image2Text: how similar an image is to a picture generated from its caption alone (arXiv 2408.01723, 2411.05706).

The score is the mean cosine of both images' features. A sampling job (configs/dit/sample.yaml) generates the pictures,
configs/score/features.yaml the features. The papers generate with GPT-4, Gemini or Stable Diffusion. The score depends
on the generating model as much as on the captioner, so captioners are compared with one model, one seed and one
encoder.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hpc.base.errors import UserError
from hpc.operator import OK, SKIPPED
from hpc.run.published import Published
from recap.data.headers import without_dot_slash
from recap.dit.write_images import member_name
from recap.evaluate.features import Features
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.text_sets import Sample

_COLUMNS = ["key", "status", "cut"]


@dataclass(frozen=True)
class Drawn:
    """The picture of one caption. key: of the picture. cut: whether the caption was longer than the model's context."""

    key: str
    status: str
    cut: bool


@dataclass(frozen=True)
class Likeness:
    """score: the mean cosine.
    empty, missing: samples with an empty caption, or without one; they count 0.
    undrawn: samples whose picture failed, which are left out.
    cut: captions of which the model read only the beginning.
    """

    score: Mean
    empty: int
    missing: int
    undrawn: int
    cut: int


def read_drawn(run: Path) -> dict[str, dict[str, Drawn]]:
    """The pictures that a sampling run made: by guidance ("" where there is only one value), then by the caption's key.

    Raises:
        UserError: the run is not a sampling run, or is not finished.
    """
    source = Published(run)
    scales = source.submission.config.get("guidance")
    if not scales:
        raise UserError(f"evaluate: {run} is no sampling run (configs/dit/sample.yaml).")
    if missing := source.missing():
        raise UserError(
            f"evaluate: {run}: {len(missing):,} of {len(source.shards):,} shards are not finished, and what they lack "
            f"would count as missing (first: {missing[0]}). Launch it again to finish it."
        )
    found: dict[str, dict[str, Drawn]] = {}
    for shard in source:
        for row in shard.table(_COLUMNS).to_pylist():
            key, _, scale = row["key"].rpartition("@") if len(scales) > 1 else (row["key"], "", "")
            found.setdefault(scale, {})[without_dot_slash(key)] = Drawn(row["key"], row["status"], bool(row["cut"]))
    return found


def compute(originals: Features, pictures: Features, drawn: dict[str, Drawn], first_alone: bool = False) -> Likeness:
    """The score of one captioner, over all images that have features.

    Args:
        originals: features of the captioned images.
        pictures: features of the generated pictures, in tars that recap.dit.write_images wrote.
        drawn: the sampling run's pictures, by the caption's key.
        first_alone: whether pictures were generated for the first captions only; others are then left out.

    Raises:
        UserError: images and pictures have no key in common, or no picture can be compared.
    """
    keys, seen = originals.keys(), pictures.keys()
    samples = {key: sample for key, sample in keys.items() if sample in originals.images}
    if not samples.keys() & drawn.keys():
        raise UserError(
            f"evaluate: no image of {originals.run} has the key of a caption that was drawn (one is "
            f"{next(iter(samples))!r}, a caption's {next(iter(drawn))!r}). Are they of the same data set?"
        )
    values: dict[Sample, float] = {}
    counts: Counter[str] = Counter()
    for key, sample in samples.items():
        made = drawn.get(key)
        place = seen.get(without_dot_slash(member_name(made.key))) if made else None
        if made is None:
            if first_alone:
                continue
            counts["missing"] += 1
            values[sample] = 0.0
        elif made.status == SKIPPED:
            counts["empty"] += 1
            values[sample] = 0.0
        elif made.status != OK or place not in pictures.images:
            counts["undrawn"] += 1
        else:
            values[sample] = float(originals.images[sample] @ pictures.images[place])
            counts["cut"] += made.cut
    if counts["undrawn"] and len(values) == counts["empty"] + counts["missing"]:
        raise UserError(
            f"evaluate: none of {counts['undrawn']:,} pictures of captions is in {pictures.run}: its features are "
            "to be those of what recap.dit.write_images wrote of this sampling run."
        )
    names = ("empty", "missing", "undrawn", "cut")
    return Likeness(bootstrap_mean(values), **{name: counts[name] for name in names})
