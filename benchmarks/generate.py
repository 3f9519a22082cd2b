"""What generating jobs cost beside their model, and what the text engine gains.

python -m benchmarks.generate operator                     CPU that a row takes outside the engine, as a share of 15 ms
python -m benchmarks.generate rows [--rows 10000000]       a column's rows alone: bytes read, memory, rows a second
python -m benchmarks.generate text --model OUT [--check]   native against transformers' generate, CapsFusion's prompt
                                                           (python -m recap.demo.smollm2 OUT --text)
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.commands import ROOT
from benchmarks.timing import say
from hpc import config as configs
from hpc.base.errors import Parser
from hpc.operator import Item
from recap.data.column import ColumnConfig
from recap.data.rows import Rows, RowsConfig
from recap.engine import Caption, CaptionerConfig, Format, Request
from recap.engine.checkpoint import open_text_checkpoint
from recap.engine.native_text import NativeTextEngine
from recap.generate.operator import GenerateOperator
from recap.generate.settings import GenerateConfig
from recap.worlds.tars import write_tar

# --- beside the engine ------------------------------------------------------------------------------


class _Echo:
    """Answers at once."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []

    def want(self) -> int:
        return 256 - len(self._waiting)

    def put(self, request: Request) -> None:
        self._waiting.append(request)

    def poll(self, timeout: float) -> list[Caption]:
        requests, self._waiting = self._waiting, []
        return [Caption(r.id, f'{{"name": "{r.key}", "count": 3}}', 9, "stop", format="f") for r in requests]

    def close(self) -> None: ...


def operator(count: int = 20_000) -> None:
    """Tars with images of 100 kB joined with a column; JSON answers."""
    with tempfile.TemporaryDirectory() as folder:
        jpeg, keys = os.urandom(100_000), [f"{number:08d}" for number in range(count)]
        with open(f"{folder}/0.tar", "wb") as file:
            write_tar(file, ((k, {"jpg": k.encode() + jpeg, "txt": b"a text of the web " + k.encode()}) for k in keys))
        texts = [f"What a captioner says of {key}, in a sentence of some length." for key in keys]
        pq.write_table(pa.table({"key": keys, "syn": texts}), f"{folder}/0.parquet", row_group_size=512)
        column = {"folder": folder, "field": "syn"}
        tree: dict[str, Any] = {
            "data": {"shards": [f"{folder}/0.tar"], "columns": {"alt": {"member": "txt"}, "syn": column}},
            "writer": {"backend": "openai", "endpoint": "http://localhost:1/v1", "served_model": "m"},
            "formats": {"f": {"text": "{alt} {syn}", "budget": {"alt": 64, "syn": 64}}},
            "parse": {"json": {"name": "string", "count": "int"}},
        }  # fmt: skip
        work = GenerateOperator(configs.structured(GenerateConfig, tree, "benchmark"))
        work._engine = _Echo()
        (shard,) = work.plan()
        start, rows, warm = 0.0, 0, count // 10  # imports are no part of a row's price
        for item in work.read(shard):
            assert isinstance(item, Item)
            if item.index == warm:
                start = time.process_time()
            while not work.want():
                rows += len(work.poll(0.0))
            work.put(item)
        while rows < count:
            rows += len(work.poll(0.0))
        each = (time.process_time() - start) / (count - warm)
    say(f"{count:,} rows: {1e6 * each:.0f} us of CPU a row beside the engine, {100 * each / 0.015:.2f} % of 15 ms")


# --- rows -------------------------------------------------------------------------------------------


def rows(count: int) -> None:
    """A column whose file holds much more than is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        Path(f"{folder}/0.tar").touch()
        _write(Path(f"{folder}/0.parquet"), count)
        file = pq.ParquetFile(f"{folder}/0.parquet")
        sizes: dict[str, int] = {}
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            for at in range(group.num_columns):
                column = group.column(at)
                name = column.path_in_schema
                sizes[name] = sizes.get(name, 0) + column.total_compressed_size
        # A process of its own reads: what writing the file took is no part of its memory.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            taken, read, peak = child.submit(_read, folder, count).result()
    named = sizes["key"] + sizes["text"]
    say(f"{count:,} rows in {taken:.1f} s, {count / taken:,.0f} a second")
    say(f"read {read / 1e6:,.1f} MB; key and text are {named / 1e6:,.1f}, the file {sum(sizes.values()) / 1e6:,.1f}")
    before, tenth, end = peak
    say(
        f"peak memory of the reading process {before:,.0f} MB before, {tenth:,.0f} after a tenth, {end:,.0f} at the end"
    )


def _read(folder: str, count: int) -> tuple[float, int, list[float]]:
    """Seconds, bytes and peak memory (MB: before, after a tenth of the rows, after all)."""
    config = RowsConfig(shards=[f"{folder}/0.tar"], columns={"a": ColumnConfig(folder=folder, field="text")})
    reader = Rows(config, ["a"], image=False)
    (shard,), _ = reader.plan()
    before, start, peak = _read_bytes(), time.perf_counter(), [_peak()]
    for found in reader.read(shard, lambda row: (None, 0)):
        assert isinstance(found, Item)
        if found.index in (count // 10, count - 1):
            peak.append(_peak())
    return time.perf_counter() - start, _read_bytes() - before, peak


def _peak() -> float:
    """Resident memory in MB at its highest; getrusage would carry the parent's over."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def _write(path: Path, count: int) -> None:
    schema = pa.schema({"key": "string", "text": "string", "blob": "binary", "more": "string"})
    with pq.ParquetWriter(path, schema) as file:
        for first in range(0, count, 512):
            keys = [f"{number:08d}" for number in range(first, min(first + 512, count))]
            texts = [f"a caption of the picture {key}" for key in keys]
            blobs = [os.urandom(200) for _ in keys]
            file.write_table(pa.table([keys, texts, blobs, [t * 5 for t in texts]], schema=schema))


def _read_bytes() -> int:
    """What this process asked the system to read so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


# --- the text engine --------------------------------------------------------------------------------

_WORDS = (
    "old",
    "red",
    "barn",
    "boat",
    "market",
    "street",
    "of",
    "Lisbon",
    "Vermont",
    "photo",
    "two",
    "dogs",
    "blue sky",
)


_TARGET = 2.0  # native with the shared prefix, over generate at its best


def text(model: str, count: int, tokens: int, threads: int, batches: list[int]) -> float:
    """Print texts a CPU second of both sides, on an idle machine as many as by the clock, on a shared one fair;
    how many times generate's best the native engine writes.
    """
    torch.set_num_threads(threads)
    bank = configs.read(ROOT / "configs/prompts/capsfusion.yaml")["formats"]["capsfusion"]
    forms: Any = {"f": Format(bank["text"], image=False, budget={"alt": 32, "syn": 64})}
    settings = CaptionerConfig(
        model=model, prompts=forms, template="{prompt}", max_tokens=tokens, threads=threads, precision="fp32"
    )
    noise = random.Random(0)

    def said(least: int, most: int) -> str:
        return " ".join(noise.choice(_WORDS) for _ in range(noise.randint(least, most)))

    asked = [Request(i, None, {"alt": said(3, 20), "syn": said(10, 40)}, str(i)) for i in range(count)]
    book = open_text_checkpoint(settings).book
    ids = [book.prompt("f", request.texts).ids for request in asked]
    say(
        f"{count} prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens, {tokens} new, {threads} threads, fp32"
    )
    found: dict[str, float] = {}
    for name, shared in (("native", True), ("native, prefix run with each row", False)):
        engine = NativeTextEngine(settings, "cpu", shared=shared)
        engine.checkpoint.eos, engine.generator.eos = (), torch.tensor([], dtype=torch.long)  # all write `tokens`
        found[name] = _sustained(engine, asked)
        shapes = engine.generator.shapes
        say(
            f"{name:40} {found[name]:6.2f} a CPU second "
            f"({len(shapes.prefix)} tokens run once, {shapes.slots} slots, {_gigabytes(engine):.1f} GB of cache)"
        )
        engine.close()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    loaded.generation_config = GenerationConfig()
    for cache in ("dynamic", "static"):
        for batch in batches:
            name = f"generate, {cache} cache, batch {batch}"
            found[name] = count / _timed(partial(_generate, loaded, ids, tokens, batch, cache))
            say(f"{name:40} {found[name]:6.2f} a CPU second")
    best = max(rate for name, rate in found.items() if name.startswith("generate"))
    say(f"native is {found['native'] / best:.2f} x generate at its best, without the shared prefix "
        f"{found['native, prefix run with each row'] / best:.2f} x")  # fmt: skip
    say(json.dumps(found))
    return found["native"] / best


def _sustained(engine: NativeTextEngine, asked: list[Request]) -> float:
    """Texts a CPU second of an engine that never runs dry, as in a shard of thousands of rows.

    All rows write as many tokens, so that the slots finish together: the clock starts when as many rows as there are
    slots are written, and stops at the same point of a later wave.
    """
    slots, numbers = engine.generator.shapes.slots, itertools.count()
    wanted, done, start = slots + slots * max(1, -(-len(asked) // slots)), 0, 0.0
    while done < wanted:
        while engine.want() > 0:
            number = next(numbers)
            engine.put(replace(asked[number % len(asked)], id=number, key=str(number)))
        before = done
        done += len(engine.poll(0.1))
        if before < slots <= done:
            start, first = time.process_time(), done
    return (done - first) / (time.process_time() - start)


def _gigabytes(engine: NativeTextEngine) -> float:
    return 2 * engine.generator.decoder.keys.nbytes / 1e9


@torch.inference_mode()
def _generate(model: Any, ids: list[list[int]], tokens: int, batch: int, cache: str) -> None:
    kind = {"cache_implementation": "static"} if cache == "static" else {}
    settings = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, **kind)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little is padded
    for start in range(0, len(order), batch):
        rows = [ids[i] for i in order[start : start + batch]]
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        model.generate(padded, attention_mask=mask, generation_config=settings)


def _timed(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def main() -> None:
    parser = Parser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("operator")
    parts.add_parser("rows").add_argument("--rows", type=int, default=1_000_000)
    model = parts.add_parser("text")
    model.add_argument("--model", required=True)
    model.add_argument("--prompts", type=int, default=64)
    model.add_argument("--tokens", type=int, default=32)
    model.add_argument("--threads", type=int, default=1)
    model.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    model.add_argument("--check", action="store_true", help=f"exit 1 under {_TARGET} x generate at its best")
    given = parser.parse_args()
    if given.part == "operator":
        operator()
    elif given.part == "rows":
        rows(given.rows)
    else:
        ratio = text(given.model, given.prompts, given.tokens, given.threads, given.batches)
        sys.exit(int(given.check and ratio < _TARGET))


if __name__ == "__main__":
    main()
