"""The shipped examples of CLIP and DiT on one's own tars, as typed, on ten pictures."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from transformers import CLIPModel

from benchmarks.random_captioner import photo
from tests.sft.test_own_data import write_tar
from tests.support.jobs import ROOT, command, inline
from tests.train.ranks import curve


def tars(folder: Path) -> None:
    """Ten pictures with their texts."""
    write_tar(folder / "mine.tar", {f"{n}.{end}": data for n in range(10) for end, data in
                                    (("jpg", photo(n)), ("txt", f"a picture of number {n}".encode()))})  # fmt: skip


@pytest.mark.slow(ci=True)
def test_what_is_missing_is_a_command_away(tmp_path: Path) -> None:
    """A launch without a tokenizer, or a text encoder, says what to type; what it says makes the tokenizer."""
    tars(tmp_path)
    words = tmp_path / "words"
    place = (f"data.shards=[{tmp_path}/*.tar]", f"runs={tmp_path}/runs", "--dry-run")
    clip = ("hpc.launch", "configs/clip/own_tars.yaml", f"model.tokenizer={words}", *place)
    refused = inline(*clip)
    assert refused.returncode == 64 and "there is no such folder" in refused.stderr
    _, _, module, *typed = shlex.split(refused.stderr.partition("\n")[2])
    assert inline(module, *typed).returncode == 0 and (words / "tokenizer.json").exists()
    assert inline(*clip).returncode == 0
    refused = inline("hpc.launch", "configs/dit/own_tars.yaml", f"model.text_encoder={tmp_path}/none", *place)
    assert f"python -m hpc.launch configs/clip/own_tars.yaml 'data.shards=[{tmp_path}/*.tar]'" in refused.stderr
    pipeline = inline("hpc.launch", "configs/pipeline/own_tars.yaml", f"runs={tmp_path}/runs", "--dry-run")
    assert pipeline.returncode == 0 and "clip" in pipeline.stdout, pipeline.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_clip_and_a_dit_of_ten_pictures(tmp_path: Path) -> None:
    """The pipeline with one's own tars in it: a tokenizer of the texts, a CLIP, a DiT with its text encoder."""
    tars(tmp_path)
    shipped = (ROOT / "configs/pipeline/own_tars.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(shipped.replace("recap/demo/flags/*.tar", f"{tmp_path}/*.tar").replace("../", f"{ROOT}/configs/"))
    few = [f"{stage}.train.{key}" for stage in ("clip", "dit") for key in ("batch=4", "epochs=1", "log_every=0")]
    done = command("hpc.launch", str(mine), f"runs={tmp_path}/runs", *few, timeout=500.0)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = tmp_path / "runs/own-tars"
    for stage in ("clip", "dit"):
        assert [step for step, _ in curve(run / stage)] == [1, 2]  # an epoch is whole in its streams: 8
    assert CLIPModel.from_pretrained(run / "clip/exports/final").config.projection_dim == 64
    assert (run / "dit/exports/final/model_index.json").exists()
