"""Image2Text: how like its image is a picture that was drawn from the caption alone (arXiv 2408.01723, 2411.05706)?

The mean cosine of an image encoder's features of both. A sampling job (configs/dit/sample.yaml) draws; features are
those of configs/score/features.yaml. The papers draw with GPT-4, Gemini or Stable Diffusion: the number is as much the
drawing model's as the captioner's, so that captioners compare by one model, one seed and one encoder.
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

_COLUMNS = ["key", "status", "cut"]


@dataclass(frozen=True)
class Drawn:
    """What became of one caption. key: of its picture; cut: the drawing model did not read the caption to its end."""

    key: str
    status: str
    cut: bool


@dataclass(frozen=True)
class Likeness:
    """score: mean cosine. empty: samples whose caption is empty, and missing: those without one: they count 0. undrawn:
    samples whose picture failed, left out. cut: captions that were drawn from their beginning alone.
    """

    score: Mean
    empty: int
    missing: int
    undrawn: int
    cut: int


def drawn_of(run: Path) -> dict[str, dict[str, Drawn]]:
    """What a sampling run has made of captions: by guidance ("" where there is one alone), then by caption's key.

    Raises:
        UserError: it is no such run, or is not finished.
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


def of(originals: Features, pictures: Features, drawn: dict[str, Drawn], first_alone: bool = False) -> Likeness:
    """Of one captioner, over all images that have features.

    Args:
        pictures: features of what was drawn, of tars that recap.dit.write_images wrote.
        drawn: of the sampling run, by key. first_alone: it was asked for some captions only; others are none of it.

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
    values: list[float] = []
    counts: Counter[str] = Counter()
    for key, sample in samples.items():
        made = drawn.get(key)
        place = seen.get(without_dot_slash(member_name(made.key))) if made else None
        if made is None:
            if first_alone:
                continue
            counts["missing"] += 1
            values.append(0.0)
        elif made.status == SKIPPED:
            counts["empty"] += 1
            values.append(0.0)
        elif made.status != OK or place not in pictures.images:
            counts["undrawn"] += 1
        else:
            values.append(float(originals.images[sample] @ pictures.images[place]))
            counts["cut"] += made.cut
    if counts["undrawn"] and len(values) == counts["empty"] + counts["missing"]:
        raise UserError(
            f"evaluate: none of {counts['undrawn']:,} pictures of captions is in {pictures.run}: its features are "
            "to be those of what recap.dit.write_images wrote of this sampling run."
        )
    names = ("empty", "missing", "undrawn", "cut")
    return Likeness(bootstrap_mean(values), **{name: counts[name] for name in names})
