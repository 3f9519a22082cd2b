"""`transformers serve`, started by the engine, captions with the shipped model for real: what it says is what
`backend=transformers` says. Slow: it needs half a minute to start.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recap.demo import CAPTIONER
from recap.engine import CaptionerConfig, load_engine
from recap.engine.settings import ServerConfig
from tests.engine.conftest import drive
from tests.engine.test_vllm import flags

# Without torchvision: the server would decode images with it, which PyPI's build cannot beside a torch without CUDA.
COMMAND = [
    sys.executable, "-c",
    "import sys; sys.modules['torchvision'] = None; from transformers.cli.transformers import main; main()",
]  # fmt: skip


@pytest.mark.slow(ci=True)
def test_it_captions_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "fastapi", reason="its serving extra is not installed; run: pip install 'transformers[serving]'"
    )
    monkeypatch.setenv("HPC_LOG", str(tmp_path / "slot_0.log"))
    command = [*COMMAND, "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32"]
    server = ServerConfig(command=[*command, "--device", "cpu"], start_s=300.0)
    requests = flags(8)
    captions = []
    for config in (
        CaptionerConfig(backend="openai", model=str(CAPTIONER), server=server, window=2, max_tokens=64),
        CaptionerConfig(backend="transformers", model=str(CAPTIONER), max_tokens=64, decode_workers=0),
    ):
        engine = load_engine(config)
        found = drive(engine, requests, limit_s=280)
        engine.close()
        captions.append([found[request.id].text for request in requests])
    assert all(len(text) > 20 for text in captions[0])
    assert sum(one == other for one, other in zip(*captions, strict=True)) >= 7, captions
