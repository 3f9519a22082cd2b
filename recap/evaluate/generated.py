"""Measures generated images, and how well they follow their prompts: the paper's table 7, for any images.

    python -m recap.evaluate.generated --raw p0=runs/p0-raw --recap p0=runs/p0-recap \\
                                       --raw p1=runs/p1-raw --recap p1=runs/p1-recap \\
        --features inception:weights-inception-2015-12-05-6726825d.pth --reference /data/coco/val2014 \\
        --clip models/clip-vit-base-patch32 --long-clip runs/recap-clip/exports/final \\
        --judge http://node7:8000/v1 --judge-model qwen3-vl --out table7.md
    python -m recap.evaluate.generated --raw theirs=/data/their_images --clip models/clip-vit-base-patch32
    python -m recap.evaluate.generated --reference /data/coco/val2014 --side 256 --features inception:FILE \\
        --save-reference coco256.safetensors                    then: --reference coco256.safetensors

An arm is a model. --raw names its images from original captions, --recap those from recaptions. Images with the same
label (LABEL=...; default: the folder's name) are in one row; a run with several guidance values has a row for each.
Images are a sampling run, tars with png and txt, or a folder of images with metadata.jsonl (file_name, prompt).

FID       torchmetrics, float64. Without Inception's weights: clip:FOLDER, whose distance is called FD(<name>)
CLIP      100 max(cos, 0) of image and prompt; "cut" is the share of prompts that are longer than the CLIP reads
judge     the paper's prompt, rating 1-5, through an OpenAI-compatible server. Answers are kept on disk, so that a
          second run, or one after a kill, asks only what is missing

Exit codes: 0 complete, 1 the judge gave some images no answer (run it again), 64 wrong usage or input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hpc.base import atomic
from hpc.base.errors import Exit, Parser, UserError
from recap import device as gpu
from recap.data.addresses import without_credentials
from recap.data.images import BadImage, EncodedImage
from recap.evaluate.arms import Prompts, Source
from recap.evaluate.clip_score import Clip, ClipScores, open_clip
from recap.evaluate.fid import (
    ClipFeatures,
    FeatureModule,
    FrechetDistance,
    Statistics,
    batches,
    open_features,
    reference_statistics,
)
from recap.evaluate.generated_report import PROMPTS, Report, Scores
from recap.evaluate.image_sets import ImageItem, Unread, open_images
from recap.evaluate.judge import Judge, JudgeConfig

Track = Callable[[str, int | None], Callable[[int], None]]
"""Starts a progress bar with a name and a total; returns a function that advances it."""


@dataclass
class Measures:
    """What is measured; None for what is not wanted. judged: the kinds of prompts whose images are judged. most: how
    many images of a set are judged. batch: images at a time."""

    features: FeatureModule | None = None
    reference: Statistics | None = None
    clip: Clip | None = None
    long_clip: Clip | None = None
    judge: Judge | None = None
    judged: tuple[str, ...] = PROMPTS
    most: int = 3000
    batch: int = 64


@dataclass
class _Set:
    """The images of one guidance value, while they are read. ranked: (hash, key); the smallest hashes are judged."""

    scores: Scores
    distance: FrechetDistance | None
    ranked: list[tuple[bytes, str]] = field(default_factory=list)


def evaluate(sources: Sequence[Source], measures: Measures, track: Track) -> Report:
    """Measure all sources. Images that cannot be read are counted as skipped; of a damaged tar the images before the
    damage are measured.

    Raises:
        UserError: something cannot be measured.
    """
    report, prompts = Report(), Prompts()
    notes: list[str] = []
    if measures.features:
        report.distance = measures.features.name
    for source in sources:
        found = _read(source, measures, prompts, track)
        notes += prompts.check(source)
        if reasons := source.images.reasons():
            report.left_out[source.name] = Counter(reasons)
        for guidance, made in sorted(found.items(), key=lambda pair: (pair[0] is not None, pair[0] or 0.0)):
            row = report.rows.setdefault((source.arm, guidance), {})
            if source.prompts in row:
                raise UserError(f"evaluate: --{source.prompts} names the arm {source.arm!r} twice. Give other labels.")
            row[source.prompts] = made.scores
        if measures.judge and source.prompts in measures.judged:
            _judge(source, found, measures.judge, measures.most, track)
    report.about = _about(measures) + notes
    return report


def _read(source: Source, measures: Measures, prompts: Prompts, track: Track) -> dict[float | None, _Set]:
    """Everything but the judge's ratings, by guidance, in one pass over a source's images."""
    found: dict[float | None, _Set] = {}
    advance, unread = track(source.name, source.images.total), Unread()
    for given in batches(source.images, measures.batch):
        items = unread.readable(given)
        prompts.add(source, items)
        for guidance in dict.fromkeys(item.guidance for item in items):
            part = [item for item in items if item.guidance == guidance]
            if guidance not in found:
                found[guidance] = _new_set(measures)
            _add(found[guidance], part, measures)
        advance(len(given))
    if not found:
        raise UserError(f"evaluate: no image of {source.images.path} can be read; the first: {unread.first}")
    source.images.left_out += unread.counts
    for guidance, made in found.items():
        made.scores.skipped = sum(n for (known, _), n in source.images.left_out.items() if known in (None, guidance))
        made.scores.damaged = source.images.damaged
        made.scores.distance = made.distance.value() if made.distance else None
        made.distance = None  # frees tens of megabytes
    return found


def _new_set(measures: Measures) -> _Set:
    clips = [ClipScores(clip) if clip else None for clip in (measures.clip, measures.long_clip)]
    return _Set(
        Scores(clip=clips[0], long_clip=clips[1]),
        FrechetDistance(measures.reference) if measures.reference else None,
    )


def _add(made: _Set, items: list[ImageItem], measures: Measures) -> None:
    seen: dict[Path, torch.Tensor] = {}

    def images(clip: Clip) -> torch.Tensor:
        if clip.folder not in seen:  # one CLIP may serve several figures
            pictures = [partial(bytes, item.data) for item in items]
            seen[clip.folder] = clip.encoder.images(pictures, [item.name for item in items])
        return seen[clip.folder]

    for scores in (made.scores.clip, made.scores.long_clip):
        if scores:
            scores.add(images(scores.clip), [item.prompt or "" for item in items])
    if made.distance and measures.features:
        features = measures.features
        made.distance.add(images(features.clip) if isinstance(features, ClipFeatures) else features(items))
    made.scores.n += len(items)
    if known := [item.cut for item in items if item.cut is not None]:
        made.scores.cut = (made.scores.cut or 0) + sum(known)
    made.ranked += [(hashlib.sha256((item.prompt or "").encode()).digest(), item.key) for item in items]


def _judge(source: Source, found: dict[float | None, _Set], judge: Judge, most: int, track: Track) -> None:
    """Have up to `most` images of each set rated: those with the smallest hashes, which have the same prompts in all
    arms."""
    for guidance, made in found.items():
        chosen = frozenset(key for _, key in sorted(made.ranked)[:most])
        advance = track(f"{source.name}: judge", len(chosen))
        wanted = (i for i in source.images if i.guidance == guidance and i.key in chosen)
        made.scores.judged = judge.rate(wanted, partial(advance, 1))


def _about(measures: Measures) -> list[str]:
    lines = []
    if measures.features and measures.reference:
        about = measures.reference.about
        unreadable = f", {int(about['unreadable']):,} more cannot be read" if about["unreadable"] != "0" else ""
        damaged = int(about.get("damaged", 0))
        unreadable += f", {damaged:,} damaged tar{'s' * (damaged != 1)}" if damaged else ""
        lines.append(
            f"{measures.features.name}: {measures.features.about}; reference: {measures.reference.count:,} images of "
            f"{about['source']}, cropped and resized to {about['side']} px{unreadable}"
        )
        if measures.reference.count <= measures.features.dimension:
            lines.append(
                f"the reference has no more images than features ({measures.features.dimension:,}): "
                f"{measures.features.name} is far too high, and compares only within this table"
            )
    for label, clip in (("CLIP", measures.clip), ("long CLIP", measures.long_clip)):
        if clip:
            lines.append(f"{label}: {clip.name}, reads {clip.context} tokens")
    if measures.judge:
        config = measures.judge.config
        lines.append(f"judge: {config.model}, the paper's prompt, rating 1–5, up to {measures.most:,} images a set")
    return lines


# --- command line ---------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog="python -m recap.evaluate.generated", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    for prompts, of in (("raw", "original captions"), ("recap", "recaptions")):
        parser.add_argument(
            f"--{prompts}", action="append", default=[], metavar="[LABEL=]IMAGES", help=f"images from {of}; repeatable"
        )
    parser.add_argument("--partial", action="store_true", help="take runs although shards are not finished")
    parser.add_argument("--features", metavar="KIND:PATH", help="inception:FILE or clip:FOLDER, for the distance")
    parser.add_argument("--reference", help="real images (tars, folder, run), or statistics of --save-reference")
    parser.add_argument("--save-reference", type=Path, metavar="FILE", help="keep the reference's statistics")
    parser.add_argument(
        "--side", type=int, help="pixels that reference images are brought to; default: the images' own"
    )
    parser.add_argument("--clip", metavar="FOLDER", help="a CLIP: transformers' or ours")
    parser.add_argument("--long-clip", metavar="FOLDER", help="a CLIP that reads long prompts whole")
    parser.add_argument("--judge", metavar="URL", help="base URL of an OpenAI-compatible server: http://node7:8000/v1")
    parser.add_argument("--judge-model", metavar="NAME", help="as that server names it")
    parser.add_argument("--judge-on", choices=["raw", "recap", "both"], default="both", help="which prompts are judged")
    parser.add_argument("--judge-images", type=int, default=3000, help="images a set (the paper's 3,000)")
    parser.add_argument("--judge-key-env", default="OPENAI_API_KEY", metavar="NAME", help="variable that holds the key")
    parser.add_argument("--judge-window", type=int, default=8, help="requests at a time")
    parser.add_argument("--judge-cache", type=Path, default=Path("runs/judge-cache"), metavar="FOLDER")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--device", default=gpu.best())
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="also write the table")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    transformers.utils.logging.disable_progress_bar()  # transformers would show one for each CLIP
    try:
        with _progress(errors) as track:
            report = _run(given, track)
    except UserError as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    if report is None:
        return Exit.COMPLETE
    table = report.as_markdown()
    if given.out:
        atomic.replace(given.out, table.encode(), durable=True)
    sys.stdout.write(json.dumps(report.as_json(), indent=1) + "\n" if given.json else table)
    if report.unanswered:
        errors.print(f"evaluate: the judge gave {report.unanswered:,} images no answer; run this again to ask for them")
        return Exit.INCOMPLETE
    return Exit.COMPLETE


def _run(given: argparse.Namespace, track: Track) -> Report | None:
    """The report; None where only reference statistics were to be saved."""
    sources = [
        _source(entry, prompts, given.partial)
        for prompts, entries in (("raw", given.raw), ("recap", given.recap))
        for entry in entries
    ]
    _check(given, sources)
    for file in (given.out, given.save_reference):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
    clips: dict[Path, Clip] = {}

    def clip(folder: str) -> Clip:
        path = Path(folder).resolve()
        if path not in clips:
            clips[path] = open_clip(path, given.device)
        return clips[path]

    measures = Measures(judged=PROMPTS if given.judge_on == "both" else (given.judge_on,))
    measures.most, measures.batch = given.judge_images, given.batch
    if given.judge:
        measures.judge = Judge(_judge_config(given))
    if given.features:
        measures.features = open_features(given.features, given.device, clip)
        measures.reference = _reference(given, measures.features, sources, track)
    if not sources:
        return None
    measures.clip = clip(given.clip) if given.clip else None
    measures.long_clip = clip(given.long_clip) if given.long_clip else None
    return evaluate(sources, measures, track)


def _source(entry: str, prompts: str, partial_: bool) -> Source:
    label, equals, path = entry.partition("=")
    if not equals or "/" in label:
        label, path = Path(entry.rstrip("/")).name, entry
    return Source(label, prompts, open_images(path, partial=partial_))


def _check(given: argparse.Namespace, sources: list[Source]) -> None:
    def refuse(why: str) -> None:
        raise UserError(f"evaluate: {why}")

    if bool(given.features) != bool(given.reference):
        refuse("a distance needs both --features (inception:FILE or clip:FOLDER) and --reference (real images).")
    if not sources and not (given.save_reference and given.reference):
        refuse("no images. Name them with --raw and --recap; --help shows how.")
    if sources and not (given.features or given.clip or given.long_clip or given.judge):
        refuse("nothing to measure. Give --features with --reference, --clip, --long-clip or --judge.")
    if given.judge and not given.judge_model:
        refuse("--judge needs --judge-model, the name that the server knows its model by.")
    if given.judge and given.judge_key_env != "OPENAI_API_KEY" and not os.environ.get(given.judge_key_env):
        refuse(f"--judge-key-env {given.judge_key_env}: this environment variable is empty.")
    for name in ("judge_images", "judge_window", "batch"):
        if getattr(given, name) < 1:
            refuse(f"--{name.replace('_', '-')} must be at least 1.")


def _judge_config(given: argparse.Namespace) -> JudgeConfig:
    return JudgeConfig(
        endpoint=given.judge, model=given.judge_model, cache=given.judge_cache, key_env=given.judge_key_env,
        window=given.judge_window,
    )  # fmt: skip


def _reference(given: argparse.Namespace, features: FeatureModule, sources: list[Source], track: Track) -> Statistics:
    """The reference's statistics, from a file or from images; saved where the arguments ask for it."""
    if given.reference.endswith(".safetensors"):
        return Statistics.load(Path(given.reference), features)
    side = given.side or (_side(sources[0]) if sources else 0)
    if not side:
        raise UserError(
            "evaluate: without images that can be read, --side is needed: the pixels that the images to come have."
        )
    images = open_images(given.reference, partial=given.partial)
    advance = track("reference", images.total)

    def told() -> Iterator[ImageItem]:
        for item in images:
            advance(1)
            yield item

    source = without_credentials(given.reference)
    found = reference_statistics(features, told(), side, source, given.batch)
    found.about["unreadable"] = str(int(found.about["unreadable"]) + sum(images.left_out.values()))
    found.about["damaged"] = str(images.damaged)
    if given.save_reference:
        found.save(given.save_reference)
    return found


def _side(source: Source) -> int:
    """The shorter side of a source's first image that can be read, in pixels; 0 where there is none."""
    for item in source.images:
        try:
            return min(EncodedImage(item.data).size)
        except BadImage:
            continue  # counted when all images are read
    return 0


class _progress:
    """Bars on a terminal, a line for each part elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Track:
        self._bars.start()
        return self._track

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _track(self, name: str, total: int | None) -> Callable[[int], None]:
        if not self._console.is_terminal:
            self._console.print(escape(name if total is None else f"{name}: {total:,} images"))
        bar = self._bars.add_task(escape(name), total=total)
        return partial(self._bars.advance, bar)


if __name__ == "__main__":
    sys.exit(main())
