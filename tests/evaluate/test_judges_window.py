"""What asking costs: an image is made ready once a row, and nothing is kept of what was answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import judges
from hpc import config as configs
from recap.engine import chat
from recap.generate.operator import GenerateOperator
from recap.generate.settings import GenerateConfig
from recap.worlds import shapes
from recap.worlds.oracle import Truths, serving
from tests.generate.test_generate import rows_of


def test_an_image_is_encoded_once_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples of two formats are six requests a row."""
    shapes.write_shard(tmp_path / "0.tar", seed=3, first=0, samples=5, side=48)
    made: list[bytes] = []
    encode = chat.base64.b64encode
    monkeypatch.setattr(chat.base64, "b64encode", lambda data: made.append(data) or encode(data))
    with serving(Truths([tmp_path / "0.tar"])) as (url, oracle):
        writer = {"samples": 3, "decoding": "sample", "endpoint": url, "served_model": "oracle/caption"}
        tree: dict[str, Any] = {
            "data": {"shards": [str(tmp_path / "0.tar")]}, "choose": "all", "writer": {"backend": "openai", **writer},
            "formats": {"a": {"text": "Describe it."}, "b": {"text": "What is there?"}},
        }  # fmt: skip
        operator = GenerateOperator(configs.structured(GenerateConfig, tree, "test"))
        operator.setup("cpu")
        rows = rows_of(operator)
        operator.close()
        assert oracle.asked == 30
    assert len(rows) == 5 == len(made) == len(set(made))


@pytest.mark.slow  # a share of time, on a machine that may have other work
def test_most_of_the_window_is_busy() -> None:
    """Half of it on any machine, whatever else it does; `python -m benchmarks.judges window --check` wants 95 %."""
    share, _ = judges.busy(rows=160, window=8)
    assert 0.5 < share < 1.1


@pytest.mark.slow
def test_memory_does_not_grow_with_judgements() -> None:
    early, late = judges.memory()
    assert late - early <= judges.APART_MB, f"{early:.1f} MB after 2,000, {late:.1f} MB after 20,000"
