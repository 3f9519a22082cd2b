"""A finished run of 34 samples, 32 of them captioned, that tests of cards and of publishing share."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from recap.worlds.tars import write_tar

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<img src=x onerror=alert(1)> | [a](http://x) **b** `c` $d$ https://evil.example @all\n# head\n| x |"


def image(width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 8)).save(buffer, "JPEG")
    return buffer.getvalue() + bytes(width)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    (folder / "in").mkdir()
    for shard in range(2):
        samples = [(f"k{shard}{n}", {"jpg": image(n), "txt": b"two words"}) for n in range(1, 16)]
        samples += [(f"<b>{shard}", {"jpg": image(40), "txt": EVIL.encode()}), (f"no{shard}", {"txt": b"x"})]
        with open(folder / "in" / f"{shard}.tar", "wb") as file:
            write_tar(file, samples)
    config = folder / "c.yaml"
    config.write_text(
        f"name: shown\nruns: {folder}\noperator: tests.support.instant.InstantOperator\n"
        "captioner: {model: instant, prompt: 'Say | what you see', decoding: sample, temperature: 0.5}\n"
        f"data: {{shards: [{folder}/in]}}\ncluster: {{kind: local, price: 3}}\nmap: {{lease_s: 3}}\n"
    )
    command = [sys.executable, "-m", "hpc.launch", str(config)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    return folder / "shown"
