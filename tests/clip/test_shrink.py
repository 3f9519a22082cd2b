"""Shrunk images: made by a map job, read instead of the tars."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from hpc.base.errors import UserError
from hpc.run.published import Published
from recap.clip.task import ClipTask
from recap.data.images import BadImage, EncodedImage
from recap.data.shrink import ShrinkConfig, ShrinkOperator, shrunk
from recap.worlds.tars import write_tar
from tests.clip.test_training import trainer, tree
from tests.data.corpus import write_column


def picture(rng: random.Random, width: int = 300, height: int = 200) -> bytes:
    noise = Image.frombytes("RGB", (20, 15), rng.randbytes(900)).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    noise.save(out, "JPEG")
    return out.getvalue()


@pytest.mark.slow
def test_a_training_reads_the_shrunk_column_and_no_tar(tmp_path) -> None:
    rng = random.Random(0)
    (tmp_path / "tars").mkdir()
    with (tmp_path / "tars/00000.tar").open("wb") as file:
        made = [(f"00000{i:06d}", {"jpg": b"junk" if i == 7 else picture(rng)}) for i in range(60)]
        write_tar(file, made)
    write_column(tmp_path, [60])
    config = yaml.safe_load((Path(__file__).parents[2] / "configs/data/shrink.yaml").read_text())
    config |= {"data": {"shards": [str(tmp_path / "tars")]}, "runs": str(tmp_path), "side": 64, "map": {"lease_s": 5}}
    (tmp_path / "shrink.yaml").write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "hpc.launch", str(tmp_path / "shrink.yaml")], check=True, capture_output=True)
    rows = pq.read_table(next(iter(Published(tmp_path / "small128"))).file).to_pylist()
    assert [row["status"] for row in rows].count("ok") == 59
    assert rows[7]["reason"] == "image: not an image"
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (96, 64) and rows[0]["width"] == 300

    columns = {
        "re_caption": {"folder": str(tmp_path / "recap"), "field": "caption"},
        "small": {"run": str(tmp_path / "small128"), "field": "image"},
    }
    world = tree(
        tmp_path, text__weights={"re_caption": 1.0}, data__columns=columns, data__pixels="small", train__batch=20
    )  # fmt: skip
    task = ClipTask(trainer(world).config, 0, None, "")
    (tmp_path / "tars/00000.tar").rename(tmp_path / "away.tar")  # the index is made; the tar is not needed any more
    ready = task.samples.take(0, 60)
    assert {reason for r in ready for _, reason in r.rejected} == {"image: missing", "text: every column is empty"}
    assert all(r.value.pixels.shape == (3, 16, 16) for r in ready)
    task.close()


def test_shrinking() -> None:
    rng = random.Random(1)
    assert Image.open(io.BytesIO(shrunk(EncodedImage(picture(rng, 1000, 400)), 64, 90))).size == (160, 64)
    with pytest.raises(BadImage, match="truncated"):
        shrunk(EncodedImage(picture(rng)[:-2000]), 64, 90)
    with pytest.raises(UserError, match="`side`"):
        ShrinkOperator(ShrinkConfig(side=0))
