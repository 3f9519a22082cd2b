"""The projects under examples/, run as their first lines say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds
import pytest

ROOT = Path(__file__).parents[2]
SAYS = {
    "1_caption": ["96 ok", "markers hold", "96 rows of"],
    "2_fuse": ["24 ok", "captions in"],
    "3_fine_tune": ["128 of 128", "16 ok"],
    "4_clip": ["128 ok", "i2t_r5"],
    "5_operator": ["96 ok", "brightest:"],
}


def test_every_example_is_run() -> None:
    assert sorted(SAYS) == sorted(folder.name for folder in (ROOT / "examples").iterdir() if folder.is_dir())


@pytest.mark.slow(ci=True)  # ten seconds to a minute of a core each
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SAYS)
def test_an_example(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", f"examples/{name}/run.sh", str(tmp_path)], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    for words in SAYS[name]:
        assert words in done.stdout, f"{words}: {done.stdout[-4000:]}"
    if name == "4_clip":
        scores = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"model"')))
        assert scores["n"] == 64 and scores["i2t_r5"] > 0.25 and scores["t2i_r5"] > 0.25  # by chance 0.08
    if name == "2_fuse":
        fused = ds.dataset(tmp_path / "export" / "data").to_table(["re_caption"])["re_caption"].to_pylist()
        named = [text for text in fused if " It is called " in text]  # words of the alt-text behind the caption's
        assert len(set(fused)) > 10 and len(named) > 10
