"""Several scorers of one image: it is decoded once, a CLIP sees it once, a batch's texts are tokenised in one call."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from recap.clip.objective import Objective
from recap.clip.tokens import Tokens
from recap.data.images import EncodedImage
from tests.score.conftest import SAMPLES, SHARDS, tree
from tests.support.published import published, rows_of

BATCH = 20  # three bags of 4 rows and a part of one


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Images decoded, images and texts encoded, calls of the tokenizer."""
    found = Counter[str]()
    rgb, forward, ids = EncodedImage.rgb, Objective.forward, Tokens.ids

    def decoded(self: EncodedImage, *given: Any) -> Any:
        found["decoded"] += 1
        return rgb(self, *given)

    def encoded(self: Objective, micro: dict[str, Any]) -> Any:
        for name, tensor in micro.items():
            found[name] += len(tensor)
            found[f"runs of {name}"] += 1
        return forward(self, micro)

    def tokenised(self: Tokens, texts: Any) -> Any:
        found["tokeniser"] += 1
        return ids(self, texts)

    monkeypatch.setattr(EncodedImage, "rgb", decoded)
    monkeypatch.setattr(Objective, "forward", encoded)
    monkeypatch.setattr(Tokens, "ids", tokenised)
    return found


def test_one_decoding_one_look_one_call(world: Path, tmp_path: Path, counted: Counter[str]) -> None:
    save_file({"weight": np.ones((1, 16), np.float32)}, tmp_path / "head.safetensors")
    model = {"model": f"{world}/clip"}
    scorers: dict[str, Any] = {
        "clip": {"clip": model | {"share": True}, "hundred": model | {"scale": 100, "references": True}},
        "self_retrieval": {"found": model}, "head": {"h": model | {"weights": f"{tmp_path}/head.safetensors"}},
        "facts": {},
    }  # fmt: skip
    changes: dict[str, Any] = {"scorers": scorers, "references": ["org"], "bag": {"rows": 4}, "batch": BATCH}
    rows = rows_of(published(tree(world, tmp_path, **changes)))
    readable = [row for row in rows if row["status"] == "ok"]
    assert len(rows) == SHARDS * SAMPLES and all(row["h"] is not None for row in readable)
    a_shard = Counter(row["key"][:3] for row in readable)
    batches = sum(-(-count // BATCH) for count in a_shard.values())
    assert counted["runs of ids"] == counted["tokeniser"] == batches
    # Of a bag that two batches share, images of the second one are looked at for the first; those are seen twice.
    again = counted["images"] - len(readable)
    assert 0 <= again <= 3 * (batches - 1) and counted["decoded"] - len(readable) == again
    assert counted["runs of images"] <= batches + (batches - 1)

    counted.clear()
    del scorers["self_retrieval"], changes["bag"]
    rows = rows_of(published(tree(world, tmp_path, "plain", **changes)))
    assert (counted["decoded"], counted["images"]) == (len(readable), len(readable))
    assert counted["runs of images"] == batches
