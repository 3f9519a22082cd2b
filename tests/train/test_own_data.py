"""The shipped examples of CLIP and DiT on one's own tars, as typed, on ten pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPModel

from benchmarks.random_captioner import photo
from hpc import config as configs
from recap.clip import make_tokenizer
from tests.sft.test_own_data import write_tar
from tests.train.ranks import curve, launch, log


@pytest.mark.slow
def test_a_clip_and_a_dit_of_ten_pictures(tmp_path: Path) -> None:
    """One after another, as their headers say: a tokenizer of the texts, a CLIP, a DiT with its text encoder."""
    write_tar(tmp_path / "mine.tar", {f"{n}.{end}": data for n in range(10) for end, data in
                                      (("jpg", photo(n)), ("txt", f"a picture of number {n}".encode()))})  # fmt: skip
    words = str(tmp_path / "words")
    typed = [words, "--architecture", "hf", "--shards", f"{tmp_path}/*.tar", "--member", "txt"]
    assert make_tokenizer.main(typed) == 0
    own = {"clip": f"model.tokenizer={words}", "dit": f"model.text_encoder={tmp_path}/clip/exports/final"}
    for name, needed in own.items():
        changes = [f"data.shards=[{tmp_path}/*.tar]", f"runs={tmp_path}", needed, "train.batch=4", "train.epochs=1",
                   "train.log_every=0"]  # fmt: skip
        config = configs.load(Path(f"configs/{name}/own_tars.yaml"), changes)
        config.trainer().check(1)
        codes = launch(tmp_path / name, 1, config.resolved, module="tests.sft.ranks")
        assert codes == [0], log(tmp_path / name)[-2000:]
        assert [step for step, _ in curve(tmp_path / name)] == [1, 2]  # an epoch is whole in its streams: 8
    assert CLIPModel.from_pretrained(tmp_path / "clip/exports/final").config.projection_dim == 64
    assert (tmp_path / "dit/exports/final/model_index.json").exists()
