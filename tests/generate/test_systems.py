"""The systems of docs/systems.md, from their shipped configs: what each asks, and what it makes of the answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.random_writer import make
from hpc import config as configs
from hpc.base.errors import Exit
from hpc.operator import Item, Row
from hpc.pipeline import definition as pipeline
from hpc.run.published import Published
from recap.engine import Request
from recap.engine.checkpoint import open_text_checkpoint
from recap.engine.endpoint import EndpointEngine
from recap.engine.native_text import NativeTextEngine
from recap.generate.operator import GenerateOperator
from recap.worlds import shapes
from recap.worlds.oracle import Oracle, Truths, serving
from tests.generate.test_generate import rows_of, served
from tests.support.jobs import ENVIRONMENT, ROOT, command, wait_for

SHARDS, SAMPLES = 2, 96

PUBLISHED = (  # CapsFusion, arXiv 2310.20550; github.com/baaivision/CapsFusion, 72404b3
    "Please merge and refine the information from the two given sentences. Sentence 1 provides detailed real-world "
    "knowledge, yet it suffers from flaws in sentence structure and grammar. Sentence 2 exhibits nice sentence "
    "structure, but lacking in-depth real-world details and may contain false information. Please combine them into a "
    "new sentence, ensuring a well-structured sentence while retaining the detailed real-world information provided in "
    "Sentence 1. Avoid simply concatenating the sentences.\n\nSentence 1: {}\nSentence 2: {}\nNew Sentence:"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tars/ of shapes, and columns beside them: syn/ (true captions), colour/ and where/ (questions)."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "tars").mkdir()
    for shard in range(SHARDS):
        shapes.write_shard(folder / "tars" / f"{shard}.tar", seed=7, first=shard * SAMPLES, samples=SAMPLES, side=48)
        numbers = range(shard * SAMPLES, (shard + 1) * SAMPLES)
        keys = [f"{number:08d}" for number in numbers]
        texts = {
            "syn": [shapes.caption(sample(number).scene, "short") for number in numbers],
            "colour": ["What colour is it?"] * SAMPLES,
            "where": ["Where is it?"] * SAMPLES,
        }
        for name, values in texts.items():
            (folder / name).mkdir(exist_ok=True)
            pq.write_table(pa.table({"key": keys, "text": values}), folder / name / f"{shard}.parquet")
    return folder


@pytest.fixture(scope="module")
def oracle(world: Path) -> Iterator[tuple[str, Oracle]]:
    with serving(Truths(sorted((world / "tars").iterdir()))) as found:
        yield found


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("writer"))


def sample(number: int) -> shapes.Sample:
    return shapes.sample(7, number, side=48)


def config(name: str, world: Path, *changes: str, **more: Any) -> Any:
    """A shipped config's own keys, over the world's tars."""
    made = configs.load(ROOT / "configs" / name, [f"data.shards=[{world}/tars]", "cluster=local", *changes])
    for key, value in more.items():
        setattr(made.work.writer, key, value)
    return made.work


def at(url: str, task: str) -> dict[str, Any]:
    return {"backend": "openai", "endpoint": url, "served_model": f"oracle/{task}", "template": None, "beams": 1}


# --- CapsFusion -------------------------------------------------------------------------------------


def test_capsfusion_asks_what_was_published(world: Path, writer: Path) -> None:
    stages = pipeline.load(ROOT / "configs/systems/capsfusion.yaml", ["cluster=local"]).stages
    assert stages["fused"].config is not None and stages["syn"].config is not None
    fused = stages["fused"].config.work
    assert (fused.writer.beams, fused.writer.max_tokens, fused.writer.template) == (3, 80, "{prompt}")
    fused.writer.model = str(writer)
    book = open_text_checkpoint(fused.asking()).book
    texts = {"alt": "old barn, Vermont", "syn": "A red barn."}
    assert book.text("capsfusion", texts) == PUBLISHED.format("old barn, Vermont", "A red barn.")
    vars(fused.writer).update(at("http://localhost:1/v1", "fuse"))
    engine = EndpointEngine(fused.asking())
    message = engine._body(Request(0, None, texts), None, "capsfusion")["messages"]
    engine.close()
    assert message == [{"role": "user", "content": PUBLISHED.format("old barn, Vermont", "A red barn.")}]
    long, whole = "barn " * 400, "A red barn stands in a wide field under a white sky. " * 20
    asked = book.text("capsfusion", {"alt": long, "syn": whole})
    first, second = asked.split("Sentence 1: ")[-1].split("\nSentence 2: ")
    assert second == f"{whole.strip()}\nNew Sentence:" and long.startswith(first)
    assert len(book.tokenizer(first, add_special_tokens=False)["input_ids"]) <= 96 < len(long.split())


@pytest.mark.slow(ci=True)
def test_capsfusion_killed_in_mid_shard_is_finished_to_the_byte(
    world: Path, tmp_path: Path, oracle: tuple[str, Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, server = oracle
    settings = at(url, "fuse?errors=0.1") | {"template": "null"}
    text = [
        "configs/generate/fuse.yaml", f"runs={tmp_path}", f"data.shards=[{world}/tars]", "cluster=local",
        f"data.columns.syn={{folder: {world}/syn}}", *(f"writer.{key}={value}" for key, value in settings.items()),
        "writer.window=8", "map.lease_s=2", "map.segment=16", "map.save_s=0", "map.min_free_gb=0",
    ]  # fmt: skip
    undisturbed = command("hpc.launch", *text, "name=undisturbed")
    assert undisturbed.returncode == Exit.COMPLETE, undisturbed.stdout + undisturbed.stderr

    held, go_on, answer, start = threading.Event(), threading.Event(), server.answer, server.asked

    def holding(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if server.asked - start > SAMPLES // 2 and not go_on.is_set():
            held.set()
            go_on.wait(240)
        return answer(body)

    monkeypatch.setattr(server, "answer", holding)
    launch = [sys.executable, "-m", "hpc.launch", *text, "name=killed"]
    with open(tmp_path / "log", "wb") as log:
        first = subprocess.Popen(launch, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    assert wait_for(held.is_set)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert len(Published(tmp_path / "killed").missing()) == SHARDS, "it was killed in the midst of the first shards"
    go_on.set()
    again = command("hpc.launch", *text, "name=killed")
    assert again.returncode == Exit.COMPLETE, again.stdout + again.stderr

    one, other = Published(tmp_path / "undisturbed"), Published(tmp_path / "killed")
    assert one.identity == other.identity and not other.missing()
    for left, right in zip(one, other, strict=True):
        assert left.file.read_bytes() == right.file.read_bytes()
        for row in right.table().to_pylist():
            number = int(row["key"])
            assert row["status"] == "ok" and row["text"] == sample(number).alt, row
            seen, name = shapes.caption(sample(number).scene, "short"), " ".join(sample(number).alt.split())
            assert row["caption"] == f"{seen} It is called {name}."


# --- the others -------------------------------------------------------------------------------------


def test_veclip_runs_the_instruction_once(world: Path, writer: Path) -> None:
    stages = pipeline.load(ROOT / "configs/systems/veclip.yaml", ["cluster=local"]).stages
    assert stages["concepts"].config is not None
    assert stages["concepts"].config.work.captioner.prompts["concepts"].max_tokens == 40
    work = config(
        "generate/vecap.yaml", world, f"data.columns.syn={{folder: {world}/syn}}", model=str(writer), threads=1
    )
    operator = GenerateOperator(work)
    operator.setup("cpu")
    assert isinstance(operator._engine, NativeTextEngine)
    instruction = len(open_text_checkpoint(work.asking()).tokenizer(work.formats["vecap"].text)["input_ids"])
    assert len(operator._engine.generator.shapes.prefix) > 0.8 * instruction
    rows = rows_of(operator)
    operator.close()
    assert len(rows) == SAMPLES and {row.status for row in rows.values()} == {"ok"}
    assert all(row.values["tokens"] <= 48 and row.values["text"] for row in rows.values())


def test_promptcap_tells_what_was_asked(world: Path, oracle: tuple[str, Oracle]) -> None:
    told = {}
    for question in ("colour", "where"):
        column = f"data.columns.question={{folder: {world}/{question}}}"
        told[question] = served(config("systems/promptcap.yaml", world, column, **at(oracle[0], "ask")))
    for number in range(SAMPLES):
        group, key = sample(number).scene.groups[0], f"{number:08d}"
        assert told["colour"][key].values["caption"] == f"The {group.kind} is {group.colour}."
        assert told["where"][key].values["caption"] == f"The {group.kind} is in the {group.place}."


def test_altogether_keeps_what_the_alt_text_knows(world: Path, oracle: tuple[str, Oracle]) -> None:
    work = config("systems/altogether.yaml", world, **at(oracle[0], "fuse"))
    assert (work.writer.temperature, work.writer.top_p, work.writer.max_tokens) == (0.2, 0.7, 192)
    rows = served(work)
    for number in range(SAMPLES):
        row = rows[f"{number:08d}"]
        assert row.status == "ok" and sample(number).alt in row.values["caption"] and row.values["image_sha256"]
    again = served(work)
    assert {k: row.values for k, row in again.items()} == {k: row.values for k, row in rows.items()}
    engine = EndpointEngine(work.asking())
    parts = engine._body(Request(0, b"\x89PNG", {"alt": ""}), b"\x89PNG", "altogether")["messages"][0]["content"]
    engine.close()
    assert parts[1]["text"] == "Describe the image in detail."


def test_altogether_runs_as_it_is_shipped(world: Path) -> None:
    """On the flags and the captioner that ship with the project."""
    work = configs.load(ROOT / "configs/systems/altogether.yaml", ["cluster=local", "writer.max_tokens=8"]).work
    work.writer.threads, work.writer.decode_workers = 1, 0
    operator = GenerateOperator(work)
    operator.setup("cpu")
    items = [item for item in operator.read(operator.plan()[0]) if isinstance(item, Item)][:6]
    for item in items:
        operator.put(item)
    rows: list[Row] = []
    while len(rows) < len(items):
        rows += operator.poll(0.1)
    operator.close()
    assert {row.status for row in rows} == {"ok"} and all(row.values["caption"] for row in rows)
