"""One reader: map job, training index, un-indexed stream and exports agree on every odd tar, and with the docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import webdataset

from hpc.base.errors import Exit, ShardError
from hpc.operator import Shard
from hpc.run.published import Published, PublishedShard
from recap import export
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.images import BadImage
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Joined, Reader
from recap.data.samples import JoinedDataConfig, image_of
from recap.data.streams import StreamPlan
from recap.data.unindexed import StreamedReader
from tests.data.oddities import ODDITIES, OK, Oddity
from tests.test_bad_input import CASES

ROOT = Path(__file__).resolve().parents[2]
IMAGE = DataConfig().image
TEXT = {"text": open_column("text", ColumnConfig(member="txt"))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map run over all of them, and its export as tars beside it."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "in").mkdir()
    for number, oddity in enumerate(ODDITIES):
        sources = folder / f"{number:02d}"
        sources.mkdir()
        (folder / "in" / f"{number:02d}.tar").write_bytes(oddity.make(sources))
    (folder / "c.yaml").write_text(
        f"name: r\nruns: {folder}\noperator: tests.support.instant.InstantOperator\ncaptioner: {{model: instant}}\n"
        f"data: {{shards: [{folder}/in]}}\ncluster: {{kind: local}}\nmap: {{lease_s: 3}}\n"
    )
    command = [sys.executable, "-m", "hpc.launch", str(folder / "c.yaml")]
    launched = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=240)
    assert launched.returncode == Exit.SOME_FAILED  # the files that are no tars
    assert export.main([str(folder / "r"), str(folder / "out"), "--webdataset"]) == Exit.COMPLETE
    return folder


def shard(runs: Path, oddity: Oddity) -> Shard:
    [found] = list_shards(DataConfig(shards=[f"{runs}/in/{ODDITIES.index(oddity):02d}.tar"]))
    return found


def published(runs: Path, oddity: Oddity) -> PublishedShard:
    found = Published(runs / "r").find(f"{ODDITIES.index(oddity):02d}")
    assert found is not None
    return found


def check_joined(samples: list[Joined], oddity: Oddity) -> None:
    assert [s.key for s in samples] == [row.key for row in oddity.rows]
    for sample, row in zip(samples, oddity.rows, strict=True):
        assert sample.problem == (row.reason if row.reason.startswith("key:") else "")
        if not sample.problem:
            assert next((sample.members[e] for e in IMAGE if e in sample.members), None) == row.image
        assert sample.columns["text"] == row.text


odd = pytest.mark.parametrize("oddity", ODDITIES, ids=lambda o: o.name)


@odd
def test_the_map_job(runs: Path, oddity: Oddity) -> None:
    found = published(runs, oddity)
    rows = found.table(["key", "text", "caption", "status", "reason", "detail"]).to_pylist()
    expected = [
        (r.key, r.text, None if r.status != OK else f"A picture of {len(r.image or b'')} bytes.", r.status, r.reason)
        for r in oddity.rows
    ]
    assert [(r["key"], r["text"], r["caption"], r["status"], r["reason"]) for r in rows] == expected
    assert (found.marker["damage"] or {}).get("reason") == oddity.damage


def test_what_is_missing_is_named(runs: Path) -> None:
    for name, extension in (("dots in names (22.05.png)", "05.png"), ("images of unknown extensions", "xyz")):
        found = published(runs, next(o for o in ODDITIES if o.name == name))
        assert f"members {extension}" in found.table(["detail"])["detail"][0].as_py()
        assert f"extensions are {extension}" in found.marker["damage"]["detail"]


def test_formats_that_are_not_read_are_named(runs: Path) -> None:
    """By their bytes, else by their extension; and what to do."""
    found = published(runs, next(o for o in ODDITIES if o.name.startswith("images that nobody reads")))
    told = found.table(["detail"])["detail"].to_pylist()
    kinds = [("HEIC", "heic"), ("JPEG XL", "jxl"), ("SVG", "svg"), ("SVG", "svgz")]
    assert told[:4] == [f"{k}, which is not read: convert it to JPEG, PNG or WebP (member {e})" for k, e in kinds]
    assert told[4] == "member heic, which is of a format that is read: name heic in data.image"
    only = Joined("s", "a", {"heic": b"\0\0\0\x18ftypheic"}, {})
    with pytest.raises(BadImage, match="HEIC, which is not read"):
        image_of(only, JoinedDataConfig())


@odd
def test_the_training_index(runs: Path, oddity: Oddity, tmp_path: Path) -> None:
    tar = shard(runs, oddity)
    if oddity.packed:
        with pytest.raises(ShardError, match="gzipped tars have no ranges"):
            Index.open_or_make(None, [tar])
        return
    index = Index.open_or_make(tmp_path / "index", [tar])
    structural = oddity.damage if oddity.damage and oddity.damage.startswith("tar:") else ""
    assert index.damaged().get(tar.id, "").startswith(structural or "")
    assert bool(index.damaged()) == bool(structural)
    assert index.samples == len(oddity.rows)
    if not oddity.rows:
        return
    reader = Reader(StreamPlan(index, seed=0, streams=1, window=4), TEXT)
    samples = {s.key + s.problem: s for slot in reader.batch(0, index.samples) for s in slot.samples}
    reader.close()
    assert len(samples) == len(oddity.rows)
    wanted = [row.key + (row.reason if row.reason.startswith("key:") else "") for row in oddity.rows]
    check_joined([samples[key] for key in wanted], oddity)


@odd
def test_the_un_indexed_stream(runs: Path, oddity: Oddity, caplog: pytest.LogCaptureFixture) -> None:
    reader = StreamedReader([shard(runs, oddity)], TEXT, seed=0, epoch_size=len(oddity.rows) or 1, shuffle=1)
    if oddity.rows:
        slots = reader.batch(0, len(oddity.rows))
        check_joined([slot.stream.next() for slot in slots], oddity)
    elif oddity.damage:
        [slot] = reader.batch(0, 1)
        with pytest.raises(export.UserError, match="none of the 1 shards"):
            next(slot.candidates())
        assert oddity.damage in caplog.text


@odd
def test_the_exports(runs: Path, oddity: Oddity) -> None:
    tar = runs / "out" / f"{ODDITIES.index(oddity):02d}.tar"
    kept = [row for row in oddity.rows if row.status == OK]
    assert tar.exists() == bool(kept)
    view = export.CaptionView(runs / "r")
    uri = shard(runs, oddity).uri
    assert (uri in view.urls) == bool(oddity.rows)
    joined = list(webdataset.DataPipeline(webdataset.SimpleShardList([uri]), view.read))
    written = list(webdataset.WebDataset(str(tar), shardshuffle=False)) if kept else []
    for found in (joined, written):
        assert [s["__key__"] for s in found] == [row.key for row in kept]
        for sample, row in zip(found, kept, strict=True):
            assert next(sample[e] for e in IMAGE if e in sample) == row.image
            assert sample["recap.txt"] == f"A picture of {len(row.image or b'')} bytes.".encode()
    assert [s["txt"].decode() if "txt" in s else None for s in written] == [row.text for row in kept]


def test_datasets_reads_the_exported_tars(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that are not UTF-8 are among them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    names = ("text that is not UTF-8", "text in UTF-16")
    tars = [str(runs / "out" / f"{n:02d}.tar") for n, o in enumerate(ODDITIES) if o.name in names]
    found = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path), streaming=True)
    found = found.cast_column("png", datasets.Image(decode=False))
    assert sorted(row["txt"] for row in found) == ["caf\ufffd", *["t\xe4xt"] * 4]


def test_the_docs_list_the_same() -> None:
    lines = (ROOT / "docs" / "input.md").read_text(encoding="utf-8").splitlines()
    table = [re.split(r" \| ", line.strip("| ")) for line in lines if line.startswith("| ")]
    said: dict[str, Any] = {cells[0]: cells[1] for cells in table if len(cells) == 2}
    for oddity in ODDITIES:
        assert said.get(oddity.name) == oddity.says
    for case in (c for c in CASES if c.key in said):
        assert said[case.key] == case.status + (f": `{case.reason}`" if case.reason else "")
    images = [c.key for c in CASES if c.image is not None and c.text == b"a flag" and c.key.replace("-", "").isalnum()]
    assert set(images) - set(said) <= {"k" * 200}
    tars, pictures = (_first_cells(lines, title) for title in ("## Tars, keys and texts", "## Images"))
    assert tars == {oddity.name for oddity in ODDITIES} and pictures <= {case.key for case in CASES}


def _first_cells(lines: list[str], title: str) -> set[str]:
    """Of the table of a section, its head left out."""
    section = lines[lines.index(title) + 1 :]
    section = section[: next(i for i, line in enumerate(section) if line.startswith("## "))]
    return {line.strip("| ").split(" | ")[0] for line in section if line.startswith("| ")} - {"input", "image"}


def test_the_docs_name_no_reason_that_is_not_written() -> None:
    """Phrases in code in docs/input.md, numbers aside, stand in the code."""
    text = (ROOT / "docs" / "input.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`((?:image|text|key|input): [^`]+)`", text))
    source = " ".join(
        path.read_text(encoding="utf-8") for place in ("recap", "hpc") for path in (ROOT / place).rglob("*.py")
    )
    parts = {part.strip() for phrase in said for part in re.split(r"[\d,]+(?: MiB)?|^\w+: ", phrase) if part.strip()}
    assert len(said) > 20 and [part for part in sorted(parts) if part not in source] == []
