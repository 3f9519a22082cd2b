"""Exports, read by those who will read them: datasets, pandas, duckdb and webdataset."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from hpc.base.errors import Exit, UserError
from hpc.operator import Shard
from hpc.run.published import Published
from recap import export
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.exported import ExportedColumn
from recap.data.inputs import DataConfig, list_shards
from recap.data.manifest import Manifest
from recap.data.manifest import write as write_manifest
from recap.evaluate import text_sets
from recap.exporting.files import rows_of_a_file, size, write_files, write_part
from recap.exporting.parts import Parts
from recap.worlds.tars import write_tar

ROOT = Path(__file__).resolve().parents[2]
SHARDS, SAMPLES = 3, 40


def image(shard: int, number: int) -> bytes:
    return b"" if number == 7 else f"image {shard} {number}".encode() * (number + 1)


@pytest.fixture(autouse=True)
def no_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run cost is asked for by a process of its own: test_card does."""
    monkeypatch.setattr(export, "status", lambda run: {})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/v1` over shards as img2dataset leaves them (metadata beside two of three), `runs/v2` as a second column."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "in").mkdir()
    for shard in range(SHARDS):
        keys = [f"{shard:05d}{n:04d}" for n in range(SAMPLES)]
        samples = [(k, {"jpg": image(shard, n), "txt": f"café {k}".encode()}) for n, k in enumerate(keys)]
        del samples[11][1]["jpg"]
        with open(folder / "in" / f"{shard:05d}.tar", "wb") as file:
            write_tar(file, samples)
        if shard:
            facts = [{"key": k, "url": f"http://x/{k}", "sha256": "f" * 64, "status": "success"} for k in keys[::-1]]
            pq.write_table(pa.Table.from_pylist(facts), folder / "in" / f"{shard:05d}.parquet")
    config = folder / "c.yaml"
    config.write_text(
        f"name: v1\nruns: {folder}/runs\noperator: tests.support.instant.InstantOperator\n"
        "captioner: {model: instant}\n"
        f"data: {{shards: [{folder}/in]}}\ncluster: {{kind: local}}\nmap: {{lease_s: 3}}\n"
    )
    for name in ("v1", "v2"):
        command = [sys.executable, "-m", "hpc.launch", str(config), f"name={name}"]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    return folder / "runs"


@pytest.fixture(scope="module")
def flat(runs: Path) -> Path:
    out = runs.parent / "flat"
    arguments = [str(runs / "v1"), str(out), "--rows-per-file=50"]
    added = f"re_caption_condition_diverse_topk={runs}/v2:caption"
    assert export.main([*arguments, "--add", added, "--add", f"re_gpt4v_score={runs}/v2:tokens"]) == Exit.COMPLETE
    return out


ROWS = SHARDS * (SAMPLES - 1)


def check(row: dict[str, Any]) -> None:
    assert row["re_caption"].startswith("A picture of ")
    assert row["org_caption"] == f"café {row['key']}"
    assert (row["re_length"], row["org_length"]) == (5, 2)
    assert row["re_caption_condition_diverse_topk"] == row["re_caption"]
    assert row["re_condition_length"] == 5
    assert row["re_gpt4v_score"] == 6
    shard, number = int(row["key"][:5]), int(row["key"][5:])
    assert row["image_sha256"] == hashlib.sha256(image(shard, number)).hexdigest()
    if row["key"].startswith("00000"):
        assert not isinstance(row["url"], str)
        assert row["sha256"] != "f" * 64
    else:
        assert row["url"] == f"http://x/{row['key']}"
        assert row["sha256"] == "f" * 64


def test_the_published_schema(flat: Path) -> None:
    files = sorted((flat / "data").iterdir())
    assert [pq.read_metadata(f).num_rows for f in files] == [50, 50, 17]
    assert {str(pq.read_schema(f)) for f in files} == {str(pq.read_schema(files[0]))}
    found = pq.read_schema(files[0])
    text, number, score = pa.string(), pa.int64(), pa.float64()
    assert [(f.name, f.type) for f in found] == [
        ("url", text), ("re_caption", text), ("org_caption", text), ("sha256", text), ("key", text),
        ("re_clip_score", score), ("org_clip_score", score), ("re_length", number), ("org_length", number),
        ("re_gpt4v_score", number), ("org_gpt4v_score", number),
        ("re_caption_condition_diverse_topk", text), ("re_condition_length", number), ("image_sha256", text),
    ]  # fmt: skip
    assert all(f.nullable for f in found)
    assert found.metadata[b"schema_version"] == b"2"


def test_datasets_reads_it(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    by_files = datasets.load_dataset(
        "parquet", data_files=f"{flat}/data/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    by_card = datasets.load_dataset(str(flat), split="train", cache_dir=str(tmp_path))
    assert len(by_files) == len(by_card) == ROWS
    for row in by_card:
        check(row)


def test_pandas_and_duckdb_read_it(flat: Path) -> None:
    frame = importlib.import_module("pandas").read_parquet(flat / "data")
    assert len(frame) == ROWS
    for row in frame.to_dict("records"):
        check(row)
    query = f"select count(*), count(url), count(re_clip_score), avg(re_length) from '{flat}/data/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(ROWS, ROWS - SAMPLES + 1, 0, 5.0)]  # type: ignore[union-attr]


def test_the_card_says_what_was_left_out(flat: Path) -> None:
    card = (flat / "README.md").read_text()
    assert "| skipped: image: missing | 3 |" in card
    assert f"{ROWS} captions" in card


def test_webdataset_reads_the_tars(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "tars"
    assert export.main([str(runs / "v1"), str(out), "--webdataset"]) == Exit.COMPLETE
    tars = sorted(map(str, out.glob("*.tar")))
    assert len(tars) == SHARDS
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert len(samples) == ROWS
    for sample in samples:
        shard, number = int(sample["__key__"][:5]), int(sample["__key__"][5:])
        assert sample["txt"] == f"café {sample['__key__']}"
        assert sample["recap.txt"] == f"A picture of {len(image(shard, number))} bytes."
    again = tmp_path / "again"
    assert export.main([str(runs / "v1"), str(again), "--webdataset"]) == Exit.COMPLETE
    assert [p.read_bytes() for p in sorted(again.glob("*.tar"))] == [Path(tar).read_bytes() for tar in tars]


def test_webdataset_reads_the_original_tars_with_the_captions_joined(runs: Path) -> None:
    view = export.CaptionView(runs / "v1")
    samples = list(webdataset.WebDataset(view.urls, shardshuffle=False).compose(view).decode())
    assert len(samples) == ROWS
    assert all(s["recap.txt"] == f"A picture of {len(s['jpg'])} bytes." for s in samples)
    everything = export.CaptionView(runs / "v1", member="caption", keep_all=True)
    assert len(list(webdataset.WebDataset(view.urls, shardshuffle=False).compose(everything))) == SHARDS * SAMPLES


def test_images_that_changed_since_are_not_exported(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tars were replaced by others with the same keys: both ways of reading them say so."""
    tar = runs.parent / "in/00001.tar"
    before = tar.read_bytes()
    samples = [
        (f"00001{n:04d}", {"jpg": image(1, n)[::-1], "txt": f"café 00001{n:04d}".encode()}) for n in range(SAMPLES)
    ]
    del samples[11][1]["jpg"]
    try:
        with tar.open("wb") as file:
            write_tar(file, samples)
        assert export.main([str(runs / "v1"), str(tmp_path / "tars"), "--webdataset"]) == Exit.USAGE
        one, other = (hashlib.sha256(data).hexdigest() for data in (image(1, 0), image(1, 0)[::-1]))
        told = f"made from an image with sha256 {one}, the tar has {other}"
        assert told in capsys.readouterr().err
        view = export.CaptionView(runs / "v1")
        with pytest.raises(UserError, match=told):
            list(webdataset.WebDataset(view.urls, shardshuffle=False).compose(view))
    finally:
        tar.write_bytes(before)


def test_mistakes(runs: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    v1 = str(runs / "v1")
    for arguments, says in (
        ([v1, str(flat)], "exists and is not empty"),
        ([v1, str(tmp_path / "a"), "--add", "nonsense"], "write COLUMN=RUN:FIELD"),
        ([v1, str(tmp_path / "a"), "--add", f"re_caption={v1}:nothing"], "has no field 'nothing'"),
        ([v1, str(tmp_path / "a"), "--add", f"re_gpt4v_score={v1}:caption"], "re_gpt4v_score: cannot become int64"),
        ([str(tmp_path), str(tmp_path / "a")], "is not a run directory"),
        ([v1, str(tmp_path / "a"), "--where", "re_clipscore > 0.3"], "Did you mean 're_clip_score'?"),
        ([v1, str(tmp_path / "a"), "--columns", "key,recaption"], "Did you mean 're_caption'?"),
        ([v1, str(tmp_path / "a"), "--columns", "key,key"], "names 'key' twice"),
        ([v1, str(tmp_path / "a"), "--shard-size", "0"], "write rows (100000) or bytes (500MB, 2GiB)"),
        ([v1, str(tmp_path / "a"), "--webdataset", "--columns", "key"], "are of parquet and JSON lines"),
    ):
        assert export.main(arguments) == Exit.USAGE
        assert says in capsys.readouterr().err.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_where_and_columns(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts equal duckdb's over the whole export, in parquet, JSON lines and tars; the rest opens as a column."""
    names = "key,re_caption,url,tokens,lint,re_gpt4v_score,image_sha256"
    add, condition = (
        ["--add", f"re_gpt4v_score={runs}/v2:tokens"],
        "lint is null and (url is null or key >= '000020010')",
    )
    for out, more in (("all", []), ("part", ["--where", f"{condition} and re_gpt4v_score > 5"])):
        arguments = [str(runs / "v1"), str(tmp_path / out), "--columns", names, *add, *more]
        assert export.main([*arguments, "--shard-size", "20"]) == Exit.COMPLETE
    card = (tmp_path / "part/README.md").read_text()
    assert "| tokens | int32 | a field of the run |" in card and "org_caption" not in card
    assert f'- rows that are kept: "{condition} and re_gpt4v_score > 5"' in card
    counted = duckdb.sql(f"select count(*) from '{tmp_path}/all/data/*.parquet' where {condition}")
    assert counted is not None
    [(count,)] = counted.fetchall()
    found = pq.read_table(tmp_path / "part/data")
    assert found.column_names == names.split(",") and len(found) == count == 2 * SAMPLES - 10 - 2 + 1 - 1
    assert found.schema.metadata[b"where"].decode().startswith(condition)
    sizes = [pq.read_metadata(f).num_rows for f in sorted((tmp_path / "part/data").iterdir())]
    assert sizes == [20, 20, 20, count - 60]
    shard = list_shards(DataConfig(shards=[str(runs.parent / "in")]))[2]
    values = open_column("recap", ColumnConfig(folder=str(tmp_path / "part"))).read(shard, 0, keys_of(shard), []).values
    assert [value is None for value in values] == [n in (7, 11) or n < 10 for n in range(SAMPLES)]
    for kind, pattern in (("webdataset", "*.tar"), ("energon", "captions/*.tar")):
        arguments = [str(runs / "v1"), str(tmp_path / kind), f"--{kind}", "--where", condition]
        assert export.main(arguments) == Exit.COMPLETE
        tars = sorted(map(str, (tmp_path / kind).glob(pattern)))
        keys = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]
        assert keys == found["key"].to_pylist()
    capsys.readouterr()
    none = [str(runs / "v1"), str(tmp_path / "none"), "--where", "re_clip_score > 0.3 and lint is null"]
    assert export.main(none) == Exit.COMPLETE
    assert "re_clip_score is null in all rows: --add re_clip_score=RUN:FIELD" in capsys.readouterr().err


def test_json_lines(runs: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    out, extra = tmp_path / "lines", f"re_caption_condition_diverse_topk={runs}/v2:caption"
    arguments = [str(runs / "v1"), str(out), "--jsonl", "--add", extra, "--add", f"re_gpt4v_score={runs}/v2:tokens"]
    assert export.main([*arguments, "--shard-size", "50"]) == Exit.COMPLETE
    files = sorted((out / "data").iterdir())
    assert [file.name for file in files] == [f"train-0000{n}.jsonl" for n in range(3)]
    lines = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert lines == pq.read_table(flat / "data").to_pylist()
    assert not (out / "shards.json").exists()  # parquet alone opens again as a column
    read = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["key"][:] == [line["key"] for line in lines]


def test_files_of_a_size_in_bytes(tmp_path: Path) -> None:
    """About so many bytes, measured on what comes first, whatever the format; NaN is null in JSON."""
    rng = np.random.default_rng(0)
    table = pa.table({"text": [rng.bytes(50).hex() for _ in range(20_000)], "score": [[float("nan")]] * 20_000})
    for kind, about in (("parquet", 200_000), ("jsonl", 400_000)):
        parts, counts = Parts(tmp_path / kind), [5000] * 4
        for number in range(4):
            write_part(parts, number, table.slice(5000 * number, 5000))
        write_files(
            parts, counts, kind, table.schema, rows_of_a_file(parts, counts, kind, table.schema, size(f"{about}B"))
        )
        written = sorted((parts.out / "data").iterdir())
        assert len(written) > 4 and all(abs(file.stat().st_size - about) < 0.15 * about for file in written[:-1])
    assert json.loads(written[0].read_text().splitlines()[0])["score"] == [None]


def test_a_run_that_is_not_complete(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Published(runs / "v2")
    source.run.generations.open({"00001": 1}, "test")
    assert export.main([str(runs / "v2"), str(tmp_path / "a")]) == Exit.INCOMPLETE
    assert "1 of 3 shards are not finished (first: 00001)" in capsys.readouterr().err
    assert export.main([str(runs / "v2"), str(tmp_path / "a"), "--partial"]) == Exit.COMPLETE
    assert "1 shards are missing" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "a" / "data").num_rows == 2 * (SAMPLES - 1)


# --- an export as a column --------------------------------------------------------------------


def keys_of(shard: Shard) -> list[str]:
    with tarfile.open(shard.uri) as tar:
        return [name.removesuffix(".txt") for name in tar.getnames() if name.endswith(".txt")]


def test_an_export_opens_again_as_a_column(runs: Path, flat: Path, tmp_path: Path) -> None:
    """Value for value as the run's own column, whatever files the rows of a shard lie in."""
    shards = list_shards(DataConfig(shards=[str(runs.parent / "in")]))
    captions = {shard.shard.id: shard.table()["caption"].to_pylist() for shard in Published(runs / "v1")}
    sets = [text_sets.read(place, text_sets.CAPTIONS) for place in (flat, flat / "data", runs / "v1")]
    assert len(sets[0].digests) == ROWS and all((s.texts, s.digests) == (sets[0].texts, sets[0].digests) for s in sets)
    exported = open_column("re_caption", ColumnConfig(folder=str(flat)))
    original = open_column("org_caption", ColumnConfig(folder=str(flat / "data"), field="org_caption"))
    assert exported.check(shards) == "" == original.check(shards)
    assert isinstance(exported, ExportedColumn)
    write_manifest(tmp_path / "manifest", exported.manifest(shards))  # as the ranks of a training read it
    began = open_column("re_caption", ColumnConfig(folder=str(flat)), Manifest(tmp_path / "manifest"))
    for shard in reversed(shards):
        keys = keys_of(shard)
        found = exported.read(shard, 0, keys, [])
        assert began.read(shard, 0, keys, []) == found
        assert (found.values, found.doubt) == (captions[shard.id], "") and len(set(found.values)) == SAMPLES
        assert found.digests is not None
        assert found.values[11] is None and found.digests[11] is None
        assert [d for n, d in enumerate(found.digests) if n != 11] == [
            hashlib.sha256(image(int(shard.id), n)).hexdigest() for n in range(SAMPLES) if n != 11
        ]
        assert original.read(shard, 0, keys[5:7], []).values == [f"café {key}" for key in keys[5:7]]


def test_an_export_that_does_not_fit(runs: Path, flat: Path, tmp_path: Path) -> None:
    """Moved tars are in doubt until their images are compared; others, other fields, other identities are refused."""
    (tmp_path / "in").mkdir()
    for tar in (runs.parent / "in").glob("*.tar"):
        shutil.copy(tar, tmp_path / "in")
    shards = list_shards(DataConfig(shards=[str(tmp_path / "in")]))
    column = open_column("re_caption", ColumnConfig(folder=str(flat)))
    assert column.check(shards).endswith("3 of 3 by id and size, their first images are compared")
    assert "nothing proves" in column.read(shards[0], 0, keys_of(shards[0]), []).doubt
    with pytest.raises(UserError, match=r"none of its first 40 keys .* was exported from other tars"):
        column.read(shards[0], 0, [f"other{n}" for n in range(SAMPLES)], [])
    more = Shard("00007", str(tmp_path / "in/00007.tar"), 1)
    with pytest.raises(UserError, match="lacks 1 of 4 shards"):
        column.check([*shards, more])
    null = open_column("re_caption", ColumnConfig(folder=str(flat), missing="null"))
    assert null.read(more, 0, ["a"], []).values == [None]
    with pytest.raises(UserError, match=r"has no field 'caption'.*set `field`"):
        open_column("re_caption", ColumnConfig(folder=str(flat), field="caption")).check(shards)
    with pytest.raises(UserError, match="not deadbeef"):
        open_column("re_caption", ColumnConfig(folder=str(flat), identity="deadbeef")).check(shards)


# --- joins and names that do not fit ----------------------------------------------------------


def small(folder: Path, keys: list[str], metadata: list[str] | None, name: str = "in/00000") -> Path:
    """A run over one tar with these keys, and the downloader's parquet with those."""
    tar = folder / f"{name}.tar"
    tar.parent.mkdir(parents=True)
    with tar.open("wb") as file:
        write_tar(file, [(key, {"jpg": b"image", "txt": b"text"}) for key in keys])
    if metadata is not None:
        facts = [{"key": key, "url": f"http://x/{key}"} for key in metadata]
        pq.write_table(pa.Table.from_pylist(facts), tar.with_suffix(".parquet"))
    config = folder / "c.yaml"
    config.write_text(
        f"name: r\nruns: {folder}\noperator: tests.support.instant.InstantOperator\ncaptioner: {{model: instant}}\n"
        f"data: {{shards: [{tar}], root: {folder}, expected: none}}\ncluster: {{kind: local}}\nmap: {{lease_s: 3}}\n"
    )
    command = [sys.executable, "-m", "hpc.launch", str(config)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    return folder / "r"


def test_keys_that_the_downloader_spells_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small(tmp_path, ["./0001", "./0002", "../x", "/y"], ["0001", "./0002"], name="in/deep/00000")
    parquet = tmp_path / "in" / "deep" / "00000.parquet"
    assert export.main([str(run), str(tmp_path / "one")]) == Exit.COMPLETE
    urls = {r["key"]: r["url"] for r in pq.read_table(tmp_path / "one" / "data").to_pylist()}
    assert urls == {"0001": "http://x/0001", "0002": "http://x/./0002", "../x": None, "/y": None}
    said = "url: found for 2 of 4 samples in the parquet beside their tar"
    assert said in capsys.readouterr().err
    assert f"{said} (not for ../x of in%2Fdeep%2F00000)" in (tmp_path / "one" / "README.md").read_text()
    pq.write_table(pa.table({"key": [1, 2], "url": ["a", "b"]}), parquet)
    assert export.main([str(run), str(tmp_path / "two")]) == Exit.USAGE
    assert "the tar spells them '0001', the parquet '1'" in capsys.readouterr().err
    assert export.main([str(run), str(tmp_path / "tars"), "--webdataset"]) == Exit.COMPLETE
    with tarfile.open(tmp_path / "tars" / "in" / "deep" / "00000.tar") as tar:  # a folder, not a %2F
        names = tar.getnames()
    assert [n for n in names if n.endswith(".jpg")] == ["0001.jpg", "0002.jpg", "%2E%2E/x.jpg", "%2Fy.jpg"]
    # such folders open again: braces find the tars, and column files may lie in folders alike
    [shard] = list_shards(DataConfig(shards=[f"{tmp_path}/tars/in/deep/{{00000..00000}}.tar"]))
    with tarfile.open(shard.uri) as tar:
        captions = [tar.extractfile(name).read().decode() for name in names if name.endswith(".recap.txt")]  # type: ignore[union-attr]
    [published] = Published(run)
    assert captions == published.table()["caption"].to_pylist()
    (tmp_path / "columns/in/deep").mkdir(parents=True)
    shutil.copy(published.file, tmp_path / "columns/in/deep/00000.parquet")
    column = open_column("re_caption", ColumnConfig(folder=str(tmp_path / "columns"), field="caption"))
    assert column.check([published.shard]) == ""
    assert column.read(published.shard, 0, ["0001", "0002", "../x", "/y"], []).values == captions
