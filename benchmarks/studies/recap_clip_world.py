"""The world of benchmarks.studies.recap_clip: distorted views of real flags, noisy alt-texts, captions of our own job.

A view is a real flag, slightly turned, cropped, shaded and compressed. Its alt-text names the country (60 %), is
boilerplate (20 %), or names a wrong one (20 %): no captioner can know the name, and no alt-text tells what is to be
seen. The recaption is written by the captioner that ships with the project, in an ordinary caption job over these
tars. A fifth of the flags is in no training view.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageEnhance

from hpc.operator import Damage
from hpc.run.published import Published
from recap.data.tars import Sample, read_samples
from recap.demo import CAPTIONER, DESCRIPTIONS, FLAGS
from recap.worlds.tars import write_tar

SIDE = 64
BOILERPLATE = ["free download image {}", "IMG_{} jpg", "buy now best price {}", "stock vector {} royalty free"]
NAMED = ["Flag of {}", "{} flag", "national flag {}", "{}"]
FILLER = "this is a picture of something that one can see here and it is shown in this way for all to look at"


def flags() -> dict[str, tuple[Image.Image, str]]:
    """Picture and country of every flag, by code."""
    found = {}
    for tar in sorted(FLAGS.glob("*.tar")):
        with tar.open("rb") as file:
            for sample in read_samples(file):
                assert not isinstance(sample, Damage)
                picture = Image.open(io.BytesIO(sample.members["png"])).convert("RGB")
                found[sample.key] = (picture, sample.members["txt"].decode().strip().removeprefix("Flag of "))
    return found


def descriptions() -> dict[str, str]:
    """What humans wrote about each flag."""
    tables = [pq.read_table(path).to_pylist() for path in sorted(DESCRIPTIONS.glob("*.parquet"))]
    return {row["key"]: row["text"] for table in tables for row in table if row["status"] == "ok"}


def unseen(codes: list[str], share: float, seed: int) -> set[str]:
    """The flags that no training view shows."""
    return set(random.Random(f"unseen/{seed}").sample(sorted(codes), round(share * len(codes))))


def view(picture: Image.Image, rng: random.Random) -> bytes:
    """One view of a flag, as a JPEG of 64 x 64."""
    turned = picture.rotate(rng.uniform(-4, 4), Image.Resampling.BILINEAR, fillcolor=(235, 235, 235))
    width, height = turned.size
    left, right = rng.uniform(0, 0.06) * width, width - rng.uniform(0, 0.06) * width
    top, bottom = rng.uniform(0, 0.06) * height, height - rng.uniform(0, 0.06) * height
    small = turned.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, right, bottom))
    small = ImageEnhance.Brightness(small).enhance(rng.uniform(0.8, 1.1))
    small = ImageEnhance.Color(small).enhance(rng.uniform(0.8, 1.1))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=rng.randint(70, 95))
    return out.getvalue()


def alt_text(country: str, others: list[str], rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(BOILERPLATE).format(rng.randint(100, 9999))
    return rng.choice(NAMED).format(country if kind < 0.8 else rng.choice(others))


class Flags:
    """What benchmarks.studies.recap_clip asks of a world; here, this one.

    metrics: of a study's queries, in the order of the report's columns, with what a plot calls them.
    """

    metrics: ClassVar[dict[str, str]] = {
        "names_top1": "zero-shot by country name, top 1",
        "recaption_r5": "retrieval by our captioner's words, R@5",
        "human_r5": "retrieval by human descriptions, R@5",
        "unseen_r5": "retrieval by human descriptions, flags not seen, R@5",
    }

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def build(self) -> None:
        """Write train/*.tar and test/*.tar (jpg, txt, cls), the run `captions` over both, and the controls' columns."""
        build(self.folder, self.settings)

    def texts(self) -> list[str]:
        """All words that the tokenizer must know."""
        names = [f"flag of {country}" for _, country in flags().values()]
        alts = "free download image national buy now best price stock vector royalty img jpg"
        return [*captions(self.folder, "train").values(), *descriptions().values(), *names, alts]

    def score(self, encoder: Any, views: Sequence[View]) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Of each metric 0 or 1 for every view (nan where it is not asked); of queries the share that was cut."""
        known, told, own = flags(), descriptions(), captions(self.folder, "test")
        hidden = unseen(list(known), self.settings["unseen"], self.settings["seed"])
        images, codes = encode(encoder, views), [view.code for view in views]
        seen = [code for code in sorted(known) if code not in hidden]
        hits = {"names_top1": zero_shot(encoder, images, codes, {code: f"Flag of {known[code][1]}" for code in seen})}
        for name, allowed in (("human_r5", set(told)), ("unseen_r5", set(told) & hidden)):
            hits[name] = _descriptions(encoder, images, codes, told, allowed)
        texts, cut = encoder.texts([own[view.key] or "" for view in views])
        hits["recaption_r5"] = retrieval(images, texts, codes)
        return hits, {"recaption": cut, "human": encoder.texts(list(told.values()))[1]}

    def facts(self) -> str:
        """What else the report says of this world."""
        return ""


@dataclass(frozen=True)
class View:
    """A test image with its truth. code: what it shows, the unit of the bootstrap; members: files by extension."""

    key: str
    code: str
    members: dict[str, bytes]


def test_views(folder: Path) -> list[View]:
    """All images of test/*.tar, by key."""
    found = []
    for tar in sorted((folder / "test").glob("*.tar")):
        with tar.open("rb") as file:
            samples = [sample for sample in read_samples(file) if isinstance(sample, Sample)]
        found += [View(s.key, s.members["cls"].decode(), s.members) for s in samples]
    return sorted(found, key=lambda view: view.key)


def encode(encoder: Any, views: Sequence[View]) -> Any:
    """Image features [views, width]."""
    return encoder.images([partial(bytes, v.members["jpg"]) for v in views], [v.key for v in views])


def zero_shot(encoder: Any, images: Any, codes: Sequence[str], names: dict[str, str]) -> list[float]:
    """Whether the nearest of `names` (code -> text) is the view's; nan for codes without a name."""
    texts, _ = encoder.texts(list(names.values()))
    nearest = [list(names)[place] for place in (images @ texts.T).argmax(1).tolist()]
    return [float(found == code) if code in names else float("nan") for found, code in zip(nearest, codes, strict=True)]


def retrieval(images: Any, texts: Any, labels: Sequence[str]) -> list[float]:
    """For each view the mean of two: its text is among its 5 nearest; it is among its text's 5 nearest.

    images, texts: [views, width], unit length. Views of equal labels count as right.
    """
    scores, named = images @ texts.T, np.array(labels)
    forth, back = (named[s.topk(5, 1).indices.numpy()] == named[:, None] for s in (scores, scores.T))
    return ((forth.any(1) + back.any(1).astype(float)) / 2).tolist()


def _descriptions(encoder: Any, images: Any, codes: list[str], told: dict[str, str], allowed: set[str]) -> list[float]:
    """As `retrieval`, by texts of flags: one view a flag stands for choice at a time."""
    wanted = sorted(allowed & set(codes))
    texts, _ = encoder.texts([told[code] for code in wanted])
    hits = [float("nan")] * len(codes)
    for number in range(max(codes.count(code) for code in wanted)):  # each flag's first view, second view, ...
        chosen = [[i for i, c in enumerate(codes) if c == code][number] for code in wanted]
        for i, hit in zip(chosen, retrieval(images[chosen], texts, wanted), strict=True):
            hits[i] = hit
    return hits


def build(folder: Path, settings: dict[str, Any]) -> None:
    """train/*.tar and test/*.tar, their recaptions (run `captions`), and the controls' columns."""
    known, rng = flags(), random.Random(f"views/{settings['seed']}")
    hidden = unseen(list(known), settings["unseen"], settings["seed"])
    names = [country for _, country in known.values()]
    samples: dict[str, list[tuple[str, dict[str, bytes]]]] = {"train": [], "test": []}
    for code, (picture, country) in sorted(known.items()):
        for part, count in (("train", 0 if code in hidden else settings["views"]), ("test", settings["test_views"])):
            for number in range(count):
                alt = alt_text(country, [n for n in names if n != country], rng)
                files = {"jpg": view(picture, rng), "txt": alt.encode(), "cls": code.encode()}
                samples[part].append((f"{part}-{code}-{number:03d}", files))
    write_shards(folder, samples, rng)
    caption(folder, CAPTIONER)
    told, train = descriptions(), samples["train"]
    alts = {key: files["txt"].decode() for key, files in train}
    codes = {key: files["cls"].decode() for key, files in train}
    write_controls(folder, alts, "human", {key: told.get(codes[key]) or alts[key] for key in alts})


def write_shards(folder: Path, samples: dict[str, list[tuple[str, dict[str, bytes]]]], rng: random.Random) -> None:
    """Shuffled, as PART/*.tar of 512 samples."""
    for part, made in samples.items():
        (folder / part).mkdir(parents=True)
        rng.shuffle(made)
        for shard in range(0, len(made), 512):
            with (folder / part / f"{shard // 512:05d}.tar").open("wb") as file:
                write_tar(file, made[shard : shard + 512])


def caption(folder: Path, captioner: Path) -> None:
    """An ordinary caption job over all tars."""
    config = {
        "name": "captions", "runs": str(folder), "cluster": "local",
        "operator": "recap.caption.operator.CaptionOperator",
        "data": {"shards": [str(folder / "train"), str(folder / "test")], "root": str(folder)},
        "captioner": {"model": str(captioner), "threads": 1, "max_tokens": 64}, "map": {"lease_s": 60},
    }  # fmt: skip
    (folder / "captions.yaml").write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "hpc.launch", str(folder / "captions.yaml")], check=True)


def captions(folder: Path, part: str) -> dict[str, str]:
    """Our captioner's words for every view, by key."""
    found: dict[str, str] = {}
    for shard in Published(folder / "captions"):
        if f"/{part}/" in shard.shard.uri:
            table = pq.read_table(shard.file, columns=["key", "caption"]).to_pydict()
            found.update(zip(table["key"], table["caption"], strict=True))
    return found


def write_controls(folder: Path, alts: dict[str, str], truth: str, told: dict[str, str]) -> None:
    """Other columns for the same views: another view's recaption; the alt-text in filler; `truth`: what is so."""
    recaps = captions(folder, "train")
    keys = sorted(recaps)
    moved = dict(zip(keys, random.Random("shuffled").sample([recaps[k] for k in keys], len(keys)), strict=True))
    spare = {k: len((recaps[k] or "").split()) - len(alts[k].split()) for k in keys}
    padded = {k: " ".join([*FILLER.split()[: max(spare[k], 0)], alts[k]]) for k in keys}
    for name, column in (("shuffled", moved), ("padded", padded), (truth, told)):
        (folder / name).mkdir()
        for shard in Published(folder / "captions"):
            if "/train/" in shard.shard.uri:
                order = pq.read_table(shard.file, columns=["key"])["key"].to_pylist()
                table = pa.table({"key": order, "caption": [column[k] for k in order]})
                out = folder / name / f"{shard.shard.id}.parquet"
                pq.write_table(table, out, row_group_size=512)
