"""The flags, captioned by the captioner that ships, from every kind of input: the same captions row for row by digest,
also where everything was killed on the way; and what works on a run of tars works on these.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from hpc import config as configs
from hpc import verify
from hpc.base.errors import Exit
from hpc.run.published import Published
from recap import export, report
from tests.data.flags import flags, write_as_folder, write_as_parquet, write_as_tar
from tests.data.hub_files import served
from tests.support.jobs import wait_for

ROOT = Path(__file__).parents[2]
SHARDS = (0, 1)


def as_tars(folder: Path) -> dict[str, Any]:
    for number in SHARDS:
        write_as_tar(folder / f"{number}.tar", flags(number))
    return {}


def as_json_tars(folder: Path) -> dict[str, Any]:
    """Captions in a JSON member, as many frameworks write them."""
    for number in SHARDS:
        samples = flags(number)
        for sample in samples:
            text = sample.members.pop("txt").decode()
            sample.members["json"] = json.dumps({"caption": text, "width": 9}).encode()
        write_as_tar(folder / f"{number}.tar", samples)
    return {"text": "json.caption"}


def as_parquet(folder: Path) -> dict[str, Any]:
    for number in SHARDS:
        write_as_parquet(folder / f"{number}.parquet", flags(number))
    return {}


def as_folder(folder: Path) -> dict[str, Any]:
    for number in SHARDS:
        write_as_folder(folder / f"part{number}", flags(number))
    return {"files_per_shard": 40}


def as_json_folder(folder: Path) -> dict[str, Any]:
    for number in SHARDS:
        write_as_folder(folder / f"part{number}", flags(number), "json")
    return {"text": "json.caption"}


def as_saved(folder: Path) -> dict[str, Any]:
    """Two splits, as `datasets` saves them."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    parts = {}
    for number, split in zip(SHARDS, ("train", "test"), strict=True):
        rows = [
            {"image": {"bytes": s.members["png"], "path": "0.png"}, "caption": s.members["txt"].decode()}
            for s in flags(number)
        ]
        parts[split] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk(folder)
    return {}


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "parquet": as_parquet, "folder": as_folder, "json beside": as_json_folder, "saved": as_saved,
    "json in tars": as_json_tars,
}  # fmt: skip


def configured(folder: Path, make: Callable[[Path], dict[str, Any]]) -> Path:
    """A config; the job's files are made in the folder `in` of a folder, unless `make` names others."""
    data = {"shards": [str(folder / "in")], **make(folder / "in")}
    tree = {
        "name": "r", "runs": str(folder), "operator": "recap.caption.operator.CaptionOperator", "cluster": "local",
        "captioner": {"model": str(ROOT / "recap/demo/captioner"), "threads": 1}, "data": data,
        "map": {"lease_s": 10, "segment": 4, "save_s": 0.0},
    }  # fmt: skip
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def launched(config: Path) -> subprocess.Popen[str]:
    """In a process group of its own, so that all of it can be killed."""
    command = [sys.executable, "-m", "hpc.launch", str(config)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def captions(run: Path) -> list[tuple[Any, ...]]:
    """Digest, original text and caption of every row, by digest: folders have an order of their own."""
    rows = [row for shard in Published(run) for row in shard.table().to_pylist()]
    return sorted((row["image_sha256"], row["text"], row["caption"], row["status"]) for row in rows)


@pytest.fixture(scope="module")
def of_tars(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("tars")
    done = launched(configured(folder, as_tars))
    out = done.communicate(timeout=900)[0]
    assert done.returncode == Exit.COMPLETE, out
    return captions(folder / "r")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_captions_whatever_was_killed(kind: str, of_tars: list[tuple[Any, ...]], tmp_path: Path) -> None:
    killed_and_launched_again(configured(tmp_path, KINDS[kind]), of_tars, tmp_path, kind)


@pytest.mark.slow
def test_the_same_captions_from_the_hub(
    of_tars: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the commit that the address names, and not at its newest."""
    as_parquet(tmp_path / "files")
    with served(monkeypatch) as hub:
        commit = hub.commit({f"data/{file.name}": file.read_bytes() for file in (tmp_path / "files").iterdir()})
        hub.commit({"data/0.parquet": b"another"})
        address = f"hf://datasets/me/set@{commit}/data/*.parquet"
        config = configured(tmp_path, lambda folder: {"shards": [address]})
        killed_and_launched_again(config, of_tars, tmp_path, "parquet")
        shards = [shard.shard.uri for shard in Published(tmp_path / "r")]
        assert shards == [f"hf://datasets/me/set@{commit}/data/{n}.parquet" for n in SHARDS]
        assert [request for request in hub.requests if f"/resolve/{commit}/" in request and "bytes=" in request]


def killed_and_launched_again(config: Path, of_tars: list[tuple[Any, ...]], tmp_path: Path, kind: str) -> None:
    """Launched, killed with all that it started, launched again: the rows are those of the tars; and what works on a
    run of tars works on this.
    """
    first = launched(config)
    try:
        wait_for(lambda: any(file.stat().st_size for file in (tmp_path / "r/segments").rglob("*.rows")), 600)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert Published(tmp_path / "r").missing(), "it was killed too late to prove anything"
    again = launched(config)
    out = again.communicate(timeout=900)[0]
    assert again.returncode == Exit.COMPLETE, out
    assert captions(tmp_path / "r") == of_tars and {row[3] for row in of_tars} == {"ok"}
    assert re.search(r"^input +[12] (parquet|folder list|arrow|tar)", out, re.MULTILINE)

    assert verify.main([str(tmp_path / "r"), "--full"]) == Exit.COMPLETE
    assert report.main([str(tmp_path / "r")]) == Exit.COMPLETE
    assert (tmp_path / "r/report.html").read_text().count('<img src="data:image/webp') >= 24
    assert export.main([str(tmp_path / "r"), str(tmp_path / "out"), "--webdataset"]) == Exit.COMPLETE
    members = []
    for path in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(path) as tar:
            members += [name.partition(".")[2] for name in tar.getnames()]
    original = "json" if kind.startswith("json") else "txt"
    assert {"png", original, "recap.txt"} <= set(members) and members.count("png") == len(of_tars)


def test_jobs_over_rows_take_a_plain_folder(tmp_path: Path) -> None:
    """As captioning does: its lists are the run's."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "a.png")
    config = configs.load(ROOT / "configs/score/facts.yaml", [f"data.shards=[{tmp_path}/pictures]"])
    operator: Any = config.operator()
    operator.keep_in(tmp_path / "lists")
    (shard,) = operator.plan()
    operator.freeze(tmp_path / "lists")
    assert Path(shard.uri).parent == tmp_path / "lists" and Path(shard.uri).is_file()
