"""Captions beside links to the tars, indexed and joined by Energon itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.photos import encoded_photos
from hpc.base.errors import Exit
from hpc.operator import Shard
from recap import export
from recap.exporting.energon import Sidecar, commands
from recap.exporting.parts import Parts
from recap.worlds.tars import write_tar
from tests.publishing.conftest import ROOT, image

# What the `energon` of the printed commands is, in whatever environment it is installed.
ENERGON = (
    "from importlib.metadata import entry_points as e; e(group='console_scripts', name='energon')['energon'].load()()"
)
LOAD = """
import json, sys
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset

class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(lambda sample: sample)]

dataset = get_train_dataset(
    sys.argv[1], worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0), batch_size=None,
    shuffle_buffer_size=None, max_samples_per_sequence=None, task_encoder=Encoder(), repeat=False,
)
for _, sample in zip(range(10), get_loader(dataset)):
    print("sample", json.dumps([sample["__key__"], sample["recap.txt"], sample["txt"], sample["jpg"].shape[-1]]))
"""


@pytest.fixture
def out(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(export, "status", lambda run: {})
    assert export.main([str(run), str(tmp_path / "out"), "--energon", "--where", "key != 'k05'"]) == Exit.COMPLETE
    return tmp_path / "out"


def test_the_images_are_not_copied(run: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [p.relative_to(out).as_posix() for p in sorted(out.rglob("*.tar"))] == [
        "captions/0.tar", "captions/1.tar", "images/0.tar", "images/1.tar",
    ]  # fmt: skip
    for name in ("0.tar", "1.tar"):
        assert (out / "images" / name).readlink() == run.parent / "in" / name
    card = (out / "README.md").read_text()
    assert "data_files: captions/**/*.tar" in card and "# shown: 31 captions" in card
    assert export.main([str(run), str(tmp_path / "x"), "--energon", "--columns", "key"]) == Exit.USAGE
    assert "are of parquet and JSON lines" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_energon_joins_them(out: Path, tmp_path: Path) -> None:
    """With the commands that the export prints; a caption belongs to the image of its key."""
    before = {path: path.stat().st_mtime_ns for path in (out / "images").resolve().glob("*.tar")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in commands(out):
        typed = [sys.executable, "-c", ENERGON, *shlex.split(command)[1:]]
        subprocess.run(typed, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=500)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(out / "metadataset.yaml")],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line.removeprefix("sample ") for line in done.stdout.splitlines() if line.startswith("sample ")]
    samples = [json.loads(line) for line in told]
    assert len(samples) == 10 and "k05" not in [key for key, *_ in samples]
    for key, caption, text, width in samples:
        assert caption == f"A picture of {len(image(width))} bytes." and (text == "two words" or key.startswith("<b>"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_sidecars_are_small(tmp_path: Path) -> None:
    """Beside pictures as people keep them (512 x 384) and captions of 100 words: less than a twentieth of the tars."""
    photos, caption = (
        encoded_photos(1, 512, 384) * 24,
        "A picture of a market under plane trees, with stalls of fruit. " * 9,
    )
    keys, tar = [f"{number:09d}" for number in range(24)], tmp_path / "00000.tar"
    with tar.open("wb") as file:
        write_tar(file, ((key, {"jpg": photo, "txt": b"x"}) for key, photo in zip(keys, photos, strict=True)))
    shard: Any = SimpleNamespace(shard=Shard("00000", str(tar), tar.stat().st_size))
    made: Any = Sidecar(Parts(tmp_path), "recap", None)  # type: ignore[arg-type]
    made._write(shard, pa.table({"key": keys, "re_caption": [caption] * len(keys)}))
    assert 24 * len(caption) < (tmp_path / "out/captions/00000.tar").stat().st_size < tar.stat().st_size / 20
