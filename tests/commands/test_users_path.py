"""What a user types in the first week, one command after the other: caption, look, export, fine-tune, CLIP."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hpc.base.errors import Exit
from tests.support.jobs import command

TARS = "recap/demo/flags/{00000..00001}.tar"  # 63 flags

PATH = f"""
python -m hpc.launch configs/caption/demo.yaml runs=RUNS name=mine data.shards=[{TARS}] --check
python -m hpc.launch configs/caption/demo.yaml runs=RUNS name=mine data.shards=[{TARS}]
python -m hpc.status RUNS/mine
python -m recap.report RUNS/mine --text
python -m hpc.verify RUNS/mine --full
python -m recap.export RUNS/mine RUNS/export
python -m recap.export RUNS/mine RUNS/tars --webdataset
python -m hpc.launch configs/sft/own_tars.yaml runs=RUNS name=tuned data.0.path={TARS} data.0.column=RUNS/mine
python -m hpc.launch configs/caption/demo.yaml runs=RUNS name=again data.shards=[{TARS}] TUNED
python -m recap.evaluate.captioner RUNS/again --references RUNS/mine
python -m recap.clip.make_tokenizer RUNS/words --shards RUNS/tars --member recap.txt --architecture hf --vocabulary 512
python -m hpc.launch configs/clip/demo.yaml runs=RUNS name=clip data.shards=[{TARS}] CLIP
python -m recap.clip.evaluate RUNS/clip/exports/final retrieve --shards {TARS} --member txt
python -m hpc.status RUNS
"""
TUNED = "captioner.model=RUNS/tuned/exports/final"
CLIP = (
    "model.tokenizer=RUNS/words data.columns.re_caption.run=null data.columns.re_caption.folder=RUNS/export "
    "stages.0.samples=256 train.batch=32 train.save_every=256"
)


@pytest.mark.slow  # two minutes of a core
@pytest.mark.timeout(1800)
def test_a_user_s_path(tmp_path: Path) -> None:
    said = {}
    for line in PATH.replace("TUNED", TUNED).replace("CLIP", CLIP).replace("RUNS", str(tmp_path)).strip().splitlines():
        _, _, module, *arguments = shlex.split(line)
        done = command(module, *arguments, timeout=600.0)
        assert done.returncode == Exit.COMPLETE, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        said[module, arguments[0]] = done.stdout
    assert f"python -m recap.export {tmp_path}/mine OUT" in said["hpc.status", f"{tmp_path}/mine"]
    assert "This flag has" in said["recap.report", f"{tmp_path}/mine"]
    assert all(word in said["hpc.status", str(tmp_path)] for word in ("mine", "tuned", "again", "clip", "complete"))
