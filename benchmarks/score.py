"""What scoring costs beside its model: rows a second through the whole job, against the model's own time on tensors.

    python -m benchmarks.score                       a small CLIP (a ViT/32 of 12 layers) on a CPU, some minutes
    python -m benchmarks.score --json out.json
    python -m benchmarks.score --check               exit 1 where a limit is missed
    python -m benchmarks.score --check --busy        by CPU time: on a machine that has other work

The job reads tars, decodes JPEGs in processes, tokenises two texts a row, runs the towers and makes rows. The model's
own time is that of the same towers on the same batches, decoded and tokenised, in memory; one thread, A B B A. With
several scorers (two of the CLIP, image facts, texts' surface) the towers run as often as with one. The decoding of the
first batch, which nothing can be done beside, is printed and not counted: an engine does it once. Texts are tokenised a
batch at a time; how fast that is, and how fast it would be in one call for the whole shard, is printed.

Wall time is what counts where cores are idle. Beside other work it tells of that work: the CPU time of the thread that
runs the model, over the model's own, is printed too, and is what --check --busy looks at.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import recap.torchvision_shim  # noqa: F401 - before transformers
from benchmarks.photos import encoded_photos
from benchmarks.targets import Target, show
from hpc import config as configs
from hpc.base.errors import Parser
from hpc.operator import Item
from recap.clip.make_tokenizer import train
from recap.score.encoder import ClipEncoder
from recap.score.operator import ScoreOperator
from recap.worlds.tars import write_tar

BATCH, CONTEXT, LIMIT = 64, 77, 1.05
SHAPE = {"num_hidden_layers": 12, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
TEXT_SHAPE = {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}


def write_input(folder: Path, rows: int) -> None:
    """One tar of photographs with two different texts each, and a CLIP of random weights that reads them."""
    words = [f"{a}{b}" for a in ("bar", "cor", "dal", "fen", "gil", "hun", "jor", "kel") for b in "aeiouy"]
    noise = np.random.default_rng(0)

    def text(count: int) -> str:
        return " ".join(noise.choice(words, count))

    photos = encoded_photos(rows, 512, 384)
    made = [(f"{n:06}", {"jpg": photos[n], "txt": text(9).encode(), "new": text(50).encode()}) for n in range(rows)]
    with (folder / "0.tar").open("wb") as file:
        write_tar(file, made)
    write_clip(folder / "clip", [text(40) for _ in range(400)])


def write_clip(folder: Path, texts: list[str]) -> None:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    tokenizer = train(iter(texts), "hf", 1000)
    tokenizer.save_pretrained(folder)
    text = TEXT_SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(0)
    shape = CLIPConfig(
        projection_dim=256, text_config=text, vision_config=SHAPE | {"image_size": 224, "patch_size": 32}
    )
    CLIPModel(shape).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)


def job(folder: Path, scorers: dict[str, Any]) -> ScoreOperator:
    tree = {
        "name": "score", "operator": "recap.score.operator.ScoreOperator", "cluster": {"kind": "local"},
        "batch": BATCH, "texts": ["alt", "new"], "scorers": scorers,
        "data": {"shards": [f"{folder}/0.tar"], "columns": {"alt": {"member": "txt"}, "new": {"member": "new"}}},
    }  # fmt: skip
    return ScoreOperator(configs.check(tree, "benchmark").work)


@dataclass(frozen=True)
class Clock:
    """Seconds since it was started: on the wall, and of the CPU by this thread."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.thread_time)

    def read(self) -> np.ndarray:
        return np.array([time.perf_counter() - self.wall, time.thread_time() - self.cpu])


def through_the_job(operator: ScoreOperator) -> tuple[np.ndarray, float]:
    """Seconds a row (wall, CPU of this thread) of a shard from its tar to its rows, as an engine has them worked on;
    and seconds until the first rows."""
    [shard] = operator.plan()
    clock, items, made, waiting = Clock(), operator.read(shard), 0, True
    first: tuple[np.ndarray, int] | None = None
    while waiting or operator.want() < 3 * BATCH:
        while waiting and operator.want() > 0:
            item = next(items, None)
            waiting = isinstance(item, Item)
            if isinstance(item, Item):
                operator.put(item)
        rows = operator.poll(0.2)
        made += len(rows)
        if rows and first is None:
            first = clock.read(), made
    assert first is not None
    return (clock.read() - first[0]) / (made - first[1]), float(first[0][0])


class TowersAlone:
    """The towers on batches that lie decoded and tokenised in memory."""

    def __init__(self, operator: ScoreOperator, encoder: ClipEncoder) -> None:
        from recap.engine.decode import decode

        [shard] = operator.plan()
        given = [item.payload for item in operator.read(shard) if isinstance(item, Item)]
        self.encoder, self.batches, self.rows = encoder, [], len(given)
        self.texts = [text for row in given for text in row.texts.values()]
        for start in range(0, len(given), BATCH):
            rows = given[start : start + BATCH]
            squares = np.stack([decode(row.image, encoder.geometry) for row in rows]).transpose(0, 3, 1, 2)
            ids = encoder.tokens.shape(encoder.tokens.ids([text for row in rows for text in row.texts.values()]))
            self.batches.append((torch.from_numpy(np.ascontiguousarray(squares)), torch.from_numpy(ids)))

    @torch.inference_mode()
    def seconds(self) -> np.ndarray:
        """A row's, wall and CPU."""
        clock = Clock()
        for images, ids in self.batches:
            self.encoder.module({"images": images})
            self.encoder.module({"ids": ids})
        return clock.read() / self.rows

    def tokenised(self, at_once: int) -> float:
        """Texts a second, so many in a call; the best of five."""
        found = []
        for _ in range(5):
            begun = time.perf_counter()
            for start in range(0, len(self.texts), at_once):
                self.encoder.tokens.ids(self.texts[start : start + at_once])
            found.append(len(self.texts) / (time.perf_counter() - begun))
        return max(found)


def cpu_s() -> float:
    """Of this process and of those of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(folder: Path, scorers: dict[str, Any], rounds: int) -> dict[str, float]:
    """Medians over rounds; the ratios are of neighbours."""
    made: list[dict[str, float]] = []
    own = TowersAlone(job(folder, scorers), ClipEncoder(f"{folder}/clip", "fp32", "cpu"))
    own.seconds()
    for number in range(rounds):
        alone = own.seconds() if number % 2 else None
        operator, before = job(folder, scorers), cpu_s()
        operator.setup("cpu")
        whole, first = through_the_job(operator)
        operator.close()
        a_core = own.rows / (cpu_s() - before)
        alone = own.seconds() if alone is None else alone
        made.append(
            {"rows_a_second": 1 / whole[0], "own_rows_a_second": 1 / alone[0], "first_s": first, "rows_a_core": a_core,
             "wall": whole[0] / alone[0], "cpu": whole[1] / alone[1]}
        )  # fmt: skip
    found = {name: float(statistics.median(one[name] for one in made)) for name in made[0]}
    calls = {"texts_a_second": 2 * BATCH, "texts_a_second_at_once": len(own.texts)}
    return found | {name: own.tokenised(size) for name, size in calls.items()}


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    clip = {"model": f"{folder}/clip", "share": True}
    several = {"clip": {"clip": clip, "hundred": {"model": f"{folder}/clip", "scale": 100}}, "surface": {}, "facts": {}}
    return {"one CLIP": {"clip": {"clip": clip}}, "several scorers": several}


def main() -> int:
    parser = Parser(
        prog="python -m benchmarks.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=512, help="of the shard")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--busy", action="store_true", help="look at CPU time")
    parser.add_argument("--check", action="store_true", help="exit 1 where a limit is missed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console, found = Console(width=140), {}
    with tempfile.TemporaryDirectory() as scratch:
        write_input(Path(scratch), given.rows)
        for name, scorers in cases(Path(scratch)).items():
            one = found[name] = measure(Path(scratch), scorers, given.rounds)
            console.print(
                f"{name}: {one['rows_a_second']:.1f} rows/s, {1 / one['wall']:.1%} of the model's own speed "
                f"({1 / one['cpu']:.1%} by CPU time); {one['rows_a_core']:.1f} a core with decoding; first rows after "
                f"{one['first_s']:.1f} s; {one['texts_a_second']:,.0f} texts/s tokenised, "
                f"{one['texts_a_second_at_once']:,.0f} all at once",
                highlight=False,
            )
    by = "cpu" if given.busy else "wall"
    targets = [Target(f"{name}: {by} time over the model's own", one[by], LIMIT, "x") for name, one in found.items()]
    show(console, targets)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return int(given.check and not all(target.met for target in targets))


if __name__ == "__main__":
    sys.exit(main())
