"""TrueMatch: whether a caption finds its image in a bag of nearly identical images (arXiv 2409.03025).

R@1 by the size of the bag: the share of a bag's captions whose own image is the nearest one, under a CLIP. Where
several images are equally near, the published script takes the first; here they share the hit. It fails where a caption
is missing; here a missing caption finds nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc.base.errors import UserError
from recap.data.headers import without_dot_slash
from recap.evaluate.features import Features, found_within, stacked
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.text_sets import Sample

Bag = tuple[str, ...]


@dataclass(frozen=True)
class TrueMatch:
    """recall: R@1 in %, by the size of a bag; its n is bags, and its `each` that of a caption over the bags it is in.
    incomplete: bags with an image that has no features, left out. missing: captions that bags lack, which find nothing.
    """

    recall: dict[int, Mean]
    incomplete: int
    missing: int


def read_bags(paths: Sequence[Path]) -> list[Bag]:
    """The bags in JSON files, each a list of lists of images' names.

    Raises:
        UserError: a file is not such a list, or a bag has fewer than two images, or the same one twice.
    """
    found: list[Bag] = []
    for path in paths:
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"evaluate: --bags {path} cannot be read: {error}") from error
        if not isinstance(listed, list) or not listed or not all(isinstance(bag, list) for bag in listed):
            raise UserError(f"evaluate: --bags {path}: expected a list of bags, each a list of images' keys.")
        for number, bag in enumerate(listed, 1):
            names = tuple(without_dot_slash(str(name)) for name in bag)
            if len(names) < 2 or len(set(names)) < len(names) or not all(isinstance(n, (str, int)) for n in bag):
                said = ", ".join(names)[:80]
                raise UserError(f"evaluate: --bags {path}: bag {number} ({said}) is not two or more different keys.")
            found.append(names)
    return found


def compute(features: Features, bags: Sequence[Bag]) -> TrueMatch:
    """TrueMatch over all bags whose images have features. UserError where none has, or a name is ambiguous."""
    named = _Names(features)
    shares: dict[int, list[float]] = {}
    by_caption: dict[int, dict[Sample, list[float]]] = {}
    incomplete = missing = 0
    for bag in bags:
        samples = [named.sample(name) for name in bag]
        whole = [sample for sample in samples if sample in features.images]
        if len(whole) < len(bag):
            incomplete += 1
            continue
        images = stacked(features.images, whole)
        texts = [features.texts.get(sample) for sample in whole]
        missing += sum(text is None for text in texts)
        found = [0.0 if text is None else found_within(text, images, at) for at, text in enumerate(texts)]
        shares.setdefault(len(bag), []).append(100 * sum(found) / len(bag))
        for sample, share in zip(whole, found, strict=True):
            by_caption.setdefault(len(bag), {}).setdefault(sample, []).append(100 * share)
    if not shares:
        example = next((name for bag in bags for name in bag if named.sample(name) not in features.images), "")
        key = next(iter(features.images))[1]
        raise UserError(
            f"evaluate: no bag has all its images in {features.run}: {example!r} is none of its keys (they look like "
            f"{key!r}), or could not be read."
        )
    each = {
        size: {sample: sum(values) / len(values) for sample, values in captions.items()}
        for size, captions in by_caption.items()
    }
    recall = {size: replace(bootstrap_mean(found), each=each[size]) for size, found in sorted(shares.items())}
    return TrueMatch(recall, incomplete, missing)


class _Names:
    """Finds samples by the names in bags: a key, a shard and a key, a file's name, or the number that a key ends in."""

    def __init__(self, features: Features) -> None:
        self._run = features.run
        self._names: dict[str, list[Sample]] = {}
        for shard, key in (*features.images, *features.unread):
            number = re.search(r"\d+$", key)
            names = {key, f"{shard}/{key}"} | ({f"#{int(number[0])}"} if number else set())
            for name in names:
                self._names.setdefault(name, []).append((shard, key))

    def sample(self, name: str) -> Sample | None:
        bare = re.sub(r"\.(jpe?g|png|webp)$", "", name, flags=re.I)
        tries = [name, bare, f"#{int(bare)}" if bare.isdecimal() else ""]
        found = next((self._names[one] for one in tries if one in self._names), [])
        if len(found) > 1:
            places = " and ".join("/".join(sample) for sample in found[:2])
            raise UserError(f"evaluate: {name} of a bag is {places} of {self._run}. Write shard/key there.")
        return found[0] if found else None
