"""The world of benchmarks.recap_clip: distorted views of real flags, noisy alt-texts, captions of our own job.

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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageEnhance

from hpc.operator import Damage
from hpc.published import Published
from recap.data.tars import read_samples
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
    for part, made in samples.items():
        (folder / part).mkdir(parents=True)
        rng.shuffle(made)
        for shard in range(0, len(made), 512):
            with (folder / part / f"{shard // 512:05d}.tar").open("wb") as file:
                write_tar(file, made[shard : shard + 512])
    _caption(folder)
    _controls(folder, samples["train"])


def _caption(folder: Path) -> None:
    """An ordinary caption job over all tars."""
    config = {
        "name": "captions", "runs": str(folder), "cluster": "local",
        "operator": "recap.caption.operator.CaptionOperator",
        "data": {"shards": [str(folder / "train"), str(folder / "test")], "root": str(folder)},
        "captioner": {"model": str(CAPTIONER), "threads": 1, "max_tokens": 64}, "map": {"lease_s": 60},
    }  # fmt: skip
    (folder / "captions.yaml").write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "hpc.launch", str(folder / "captions.yaml")], check=True)


def captions(folder: Path, part: str) -> dict[str, str]:
    """Our captioner's words for every view, by key."""
    found = {}
    for shard in Published(folder / "captions"):
        if f"/{part}/" in shard.shard.uri:
            table = pq.read_table(shard.file, columns=["key", "caption"]).to_pydict()
            found.update(zip(table["key"], table["caption"]))
    return found


def _controls(folder: Path, train: list[tuple[str, dict[str, bytes]]]) -> None:
    """Other columns for the same views: another view's recaption; the alt-text in filler; the human description."""
    recaps, told = captions(folder, "train"), descriptions()
    alts = {key: files["txt"].decode() for key, files in train}
    codes = {key: files["cls"].decode() for key, files in train}
    keys = sorted(recaps)
    moved = dict(zip(keys, random.Random("shuffled").sample([recaps[k] for k in keys], len(keys))))
    spare = {k: len((recaps[k] or "").split()) - len(alts[k].split()) for k in keys}
    padded = {k: " ".join([*FILLER.split()[: max(spare[k], 0)], alts[k]]) for k in keys}
    human = {k: told.get(codes[k]) or alts[k] for k in keys}
    for name, column in (("shuffled", moved), ("padded", padded), ("human", human)):
        (folder / name).mkdir()
        for shard in Published(folder / "captions"):
            if "/train/" in shard.shard.uri:
                order = pq.read_table(shard.file, columns=["key"])["key"].to_pylist()
                table = pa.table({"key": order, "caption": [column[k] for k in order]})
                out = folder / name / f"{shard.shard.id}.parquet"
                pq.write_table(table, out, row_group_size=512)
