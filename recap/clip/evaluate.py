"""Evaluate a CLIP model: zero-shot classification, retrieval, true or false attributes. One JSON object on stdout.

    python -m recap.clip.evaluate MODEL classify --shards /data/imagenet_val --label cls --classes names.txt
    python -m recap.clip.evaluate MODEL classify --folder /data/val                    (a folder of images a class)
    python -m recap.clip.evaluate MODEL retrieve --karpathy dataset_coco.json --images /data/coco
    python -m recap.clip.evaluate MODEL retrieve --folder /data/Urban1k        (image/ and caption/ with equal names)
    python -m recap.clip.evaluate MODEL retrieve --shards /data/tars --member txt      (or --run RUN --field caption)
    python -m recap.clip.evaluate MODEL attribute --json visual_genome_attribution.json --images /data/vg

MODEL is an export of this toolkit. Started as several tasks of one job (`srun python -m ...`), ranks share the work.
Reported with every metric: `cut`, the share of texts that were cut to the context; `n` images and `texts` that were
scored; `skipped` samples without a text or a readable image; `damaged` tars, which end too early. The same evaluations
can run inside a training, see `evaluate` in its config.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpc.base.errors import Parser, UserError
from hpc.operator import Damage
from recap import device as gpu
from recap.clip import metrics
from recap.clip.encoder import Encoder, Features, Picture
from recap.clip.losses import ranks
from recap.clip.settings import EvaluationConfig, check_evaluation
from recap.clip.step import join_step
from recap.data.blocks import BLOCK
from recap.data.column import ColumnConfig
from recap.data.columns import members_of, open_column
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.same_image import SameImages

log = logging.getLogger(__name__)

TEMPLATES = ["a photo of a {}."]


@dataclass
class Pairs:
    """Images, texts, and for each text the number of its image.

    left_out: samples without an image or a text. damaged: damaged tars, whose samples before the damage count.
    """

    pictures: list[Picture]
    names: list[str]
    texts: list[str]
    image_of_text: list[int]
    left_out: int = 0
    damaged: int = 0

    def counts(self, kept: Sequence[int]) -> dict[str, float]:
        """The counts that are reported with every metric. kept: numbers of the images that could be read."""
        known = set(kept)
        return {
            "n": len(known), "texts": sum(i in known for i in self.image_of_text),
            "skipped": self.left_out + len(self.pictures) - len(known), "damaged": self.damaged,
        }  # fmt: skip


def classify(
    encoder: Features, pairs: Pairs, labels: list[int], classes: list[str], templates: list[str]
) -> dict[str, float]:
    """Zero-shot accuracy. A class's feature is the mean over its prompts: `templates` with its name instead of `{}`."""
    images, kept = _images(encoder, pairs)
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    features, cut = encoder.texts(prompts)
    made = metrics.class_features(features.unflatten(0, (len(classes), len(templates))))
    return {**metrics.accuracy(images, made, torch.tensor(labels)[kept]), "cut": cut, **pairs.counts(kept)}


def retrieve(encoder: Features, pairs: Pairs) -> dict[str, float]:
    """Recall at 1, 5 and 10, from images to texts and from texts to images."""
    images, kept = _images(encoder, pairs)
    number = {old: new for new, old in enumerate(kept)}
    found = [(text, number[i]) for text, i in zip(pairs.texts, pairs.image_of_text, strict=True) if i in number]
    features, cut = encoder.texts([text for text, _ in found])
    owners = torch.tensor([owner for _, owner in found])
    return {**metrics.recall(images, features, owners), "cut": cut, **pairs.counts(kept)}


def attribute(encoder: Features, pairs: Pairs, false: list[str]) -> dict[str, float]:
    """The share of images that are nearer to their true than to their false text. Each image has one of both."""
    images, kept = _images(encoder, pairs)
    features, cut = encoder.texts([texts[i] for texts in (pairs.texts, false) for i in kept])
    true, wrong = features.chunk(2)
    return {**metrics.choice(images, true, wrong), "cut": cut, **pairs.counts(kept)}


def _images(encoder: Features, pairs: Pairs) -> tuple[torch.Tensor, list[int]]:
    """(features of the readable images, their numbers). UserError where no image can be read."""
    features, failed = encoder.readable(pairs.pictures, pairs.names)
    kept = [number for number in range(len(pairs.pictures)) if number not in failed]
    for why in failed.values() if ranks()[0] == 0 else ():
        log.warning("evaluate: skipped: %s", why)
    if not kept:
        raise UserError(f"evaluate: no image can be read; the first: {failed[0]}")
    return features[torch.tensor(kept)], kept


def measure(encoder: Features, config: EvaluationConfig) -> dict[str, float]:
    """Run the evaluation that a config describes. Returns its metrics and counts by name."""
    images = Path(config.images)
    if config.task == "attribute":
        return attribute(encoder, *attribution(Path(config.json), images))
    if config.task == "classify":
        if config.folder:
            pairs, classes = class_folders(Path(config.folder), config.classes)
        else:
            pairs, classes = tars(config.shards, ColumnConfig(member=config.label)), _lines(Path(config.classes))
        templates = _lines(Path(config.templates)) if config.templates else TEMPLATES
        if odd := [template for template in templates if "{}" not in template]:
            raise UserError(f"evaluate: {config.templates}: {odd[0]!r} has no {{}} for the class's name.")
        return classify(encoder, pairs, _labels(pairs, config, len(classes)), classes, templates)
    if config.karpathy:
        return retrieve(encoder, karpathy(Path(config.karpathy), images, config.split))
    if config.folder:
        return retrieve(encoder, folder(Path(config.folder)))
    given = config.column.run or config.column.folder or config.column.member
    return retrieve(encoder, tars(config.shards, config.column if given else ColumnConfig(member="txt")))


def _labels(pairs: Pairs, config: EvaluationConfig, classes: int) -> list[int]:
    """The number of each image's class. UserError where a label is not a class's number."""
    for name, text in zip(pairs.names, pairs.texts, strict=True):
        if not text.strip().isdecimal() or int(text) >= classes:
            raise UserError(
                f"evaluate: {name}: its .{config.label} is {text[:40]!r}, not a number from 0 to {classes - 1}, which "
                f"{config.classes} has names for."
            )
    return [int(text) for text in pairs.texts]


# --- sources --------------------------------------------------------------------------------------


def karpathy(file: Path, images: Path, split: str = "test") -> Pairs:
    """COCO's or Flickr30K's Karpathy split: a JSON of images with five sentences each."""
    pairs = Pairs([], [], [], [])
    try:
        for entry in _json(file)["images"]:
            if entry["split"] == split:
                path = images / entry.get("filepath", "") / entry["filename"]
                _add(pairs, path, [sentence["raw"] for sentence in entry["sentences"]])
    except (KeyError, TypeError) as error:
        raise UserError(f"evaluate: {file} is not a Karpathy split: an image's {error} is missing.") from error
    return _some(pairs, f"{file} has no images of split {split!r}")


def folder(path: Path) -> Pairs:
    """Urban-1K: `image/NAME.*` and `caption/NAME.txt`."""
    pairs = Pairs([], [], [], [])
    pictures = {p.stem: p for p in sorted((path / "image").glob("*"))} if (path / "image").is_dir() else {}
    for text in sorted((path / "caption").glob("*.txt")):
        if text.stem not in pictures:
            raise UserError(f"evaluate: {text} has no image of that name in {path / 'image'}")
        _add(pairs, pictures[text.stem], [text.read_text(encoding="utf-8").strip()])
    return _some(pairs, f"{path} has no caption/*.txt")


def class_folders(path: Path, names: str) -> tuple[Pairs, list[str]]:
    """Images in one folder for each class. The texts of the pairs are the classes' numbers.

    Args:
        names: file with a class's name in each line, in the order of the folders' names, or `FOLDER<tab>NAME`. "": the
            folders' names with spaces for underscores.

    Returns:
        (pairs, names of the classes)
    """
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    extensions, pairs = DataConfig().image, Pairs([], [], [], [])
    for number, place in enumerate(folders):
        for file in sorted(place.rglob("*")):
            if file.name.startswith("."):  # macOS writes ._1.png and .DS_Store
                continue
            if file.suffix.lower().lstrip(".") in extensions:
                _add(pairs, file, [str(number)])
            else:
                pairs.left_out += file.is_file()
    _some(pairs, f"{path} has no folders with images in them, one a class")
    lines = _lines(Path(names)) if names else [f.name.replace("_", " ") for f in folders]
    if lines and all("\t" in line for line in lines):
        named = dict(line.split("\t", 1) for line in lines)
        if missing := [f.name for f in folders if f.name not in named]:
            raise UserError(f"evaluate: {names} has no line for the folder {missing[0]} ({len(missing)} such).")
        lines = [named[f.name] for f in folders]
    if len(lines) != len(folders):
        raise UserError(f"evaluate: {names} has {len(lines)} names, {path} {len(folders)} folders.")
    return pairs, lines


def tars(shards: list[str], column: ColumnConfig) -> Pairs:
    """The images of tars with the texts of a column. Samples without image or text are left out. A rank reads only the
    images that `Features` asks for.
    """
    config = DataConfig(shards=shards)
    made, pairs = open_column("text", column), Pairs([], [], [], [])
    given, (rank, world) = list_shards(config), ranks()
    made.check(given)
    wanted = config.wanted(members_of([made]))
    same = SameImages(config.image, tells=rank == 0)
    for shard in given:
        for block, samples in _blocks(shard, wanted, pairs):
            keys, members = [s.key for s in samples], [s.members for s in samples]
            read = made.read(shard, block, keys, members)
            same.check(shard.id, keys, members, {} if column.member else {"text": read})
            for sample, text in zip(samples, read.values, strict=True):
                image = next((sample.members[e] for e in config.image if e in sample.members), None)
                pairs.left_out += image is None or not text
                if image is not None and text:
                    number = len(pairs.pictures)
                    pairs.image_of_text.append(number)
                    pairs.pictures.append(partial(bytes, image if number % world == rank or number == 0 else b""))
                    pairs.names.append(f"{shard.id}/{sample.key}")
                    pairs.texts.append(text)
    member = f" (a member {column.member!r})" if column.member else ""
    return _some(pairs, f"{', '.join(shards)}: no sample has an image and a text{member}")


def _blocks(shard: Any, wanted: Wanted, pairs: Pairs) -> Any:
    found = list(samples_of(shard, wanted))
    samples = [s for s in found if not isinstance(s, Damage)]
    for damage in (s for s in found if isinstance(s, Damage)):
        pairs.damaged += 1
        log.warning("evaluate: %s is damaged after %d samples: %s", shard.uri, len(samples), damage.reason)
    for start in range(0, len(samples), BLOCK):
        yield start // BLOCK, samples[start : start + BLOCK]


def attribution(file: Path, images: Path) -> tuple[Pairs, list[str]]:
    """ARO's VG-attribution: a JSON list of images with a box, a true and a false caption. Returns (pairs, false
    texts)."""
    pairs, false = Pairs([], [], [], []), []
    try:
        for entry in _json(file):
            path = images / entry["image_path"]
            box = tuple(entry[k] for k in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")) if "bbox_x" in entry else None
            pairs.image_of_text.append(len(pairs.pictures))
            pairs.pictures.append(partial(_cropped, path, box))
            pairs.names.append(str(path))
            pairs.texts.append(entry["true_caption"])
            false.append(entry["false_caption"])
    except (KeyError, TypeError) as error:
        raise UserError(f"evaluate: {file} is not ARO's list of pairs: an entry's {error} is missing.") from error
    return _some(pairs, f"{file} is empty"), false


def _cropped(path: Path, box: tuple[int, ...] | None) -> bytes:
    """The bytes of an image file, or a PNG of a box (left, top, right, bottom) of it. Raises BadImage, OSError."""
    from recap.data.images import decode_rgb

    data = path.read_bytes()
    if box is None:
        return data
    out = io.BytesIO()
    decode_rgb(data).crop((box[0], box[1], box[0] + box[2], box[1] + box[3])).save(out, "PNG")
    return out.getvalue()


def _add(pairs: Pairs, path: Path, texts: list[str]) -> None:
    pairs.image_of_text += [len(pairs.pictures)] * len(texts)
    pairs.pictures.append(path.read_bytes)
    pairs.names.append(str(path))
    pairs.texts += texts


def _some(pairs: Pairs, otherwise: str) -> Pairs:
    if not pairs.texts:
        raise UserError(f"evaluate: {otherwise}.")
    return pairs


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"evaluate: {file} cannot be read as JSON: {error}") from error


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"evaluate: {file} cannot be read: {error}") from error


# --- command line ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("task", choices=["classify", "retrieve", "attribute"])
    parser.add_argument("--shards", nargs="+", default=[], help="tars, as in data.shards")
    parser.add_argument("--label", default="cls", help="member that holds a class's number")
    parser.add_argument("--classes", default="", help="class names, one a line (with --folder: or FOLDER<tab>NAME)")
    parser.add_argument("--templates", default="", help="prompts with {} for the name, one a line")
    parser.add_argument("--member", default=None, help="member that holds the text")
    parser.add_argument("--run", default=None, help="caption run whose column is the text")
    parser.add_argument("--field", default=None)
    parser.add_argument("--karpathy", default="")
    parser.add_argument("--split", default="test")
    parser.add_argument("--folder", default="", help="classify: folders of images, one a class; retrieve: Urban-1K's")
    parser.add_argument("--json", default="")
    parser.add_argument("--images", default="")
    parser.add_argument("--prefix", default=None, help="source token that texts are read with")
    parser.add_argument("--device", default=gpu.best())
    parser.add_argument("--batch", type=int, default=256)
    try:
        result = _evaluate(parser.parse_args(arguments))
    except UserError as error:
        raise SystemExit(str(error)) from error
    if ranks()[0] == 0:
        sys.stdout.write(json.dumps(result) + "\n")


def _evaluate(given: argparse.Namespace) -> dict[str, Any]:
    join_step()
    encoder = Encoder(given.model, given.device, given.batch, given.prefix)
    about = {"model": given.model, "task": given.task, "context": encoder.config.context, "image": encoder.size}
    column = ColumnConfig(run=given.run, member=given.member, field=given.field)
    known = {f.name for f in dataclasses.fields(EvaluationConfig)} - {"column", "batch"}
    config = EvaluationConfig(**{name: getattr(given, name) for name in known}, column=column)
    check_evaluation("evaluate", config)
    return about | measure(encoder, config)


if __name__ == "__main__":
    main()
