"""What training ends answers with, captions end with: in exports, assembled and converted models, and in the job."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, GenerationConfig, LlavaForConditionalGeneration

from benchmarks.random_captioner import photo
from hpc import config as configs
from recap.engine.checkpoint import open_checkpoint
from recap.engine.interface import Caption, Request
from recap.engine.native import NativeEngine
from recap.engine.settings import CaptionerConfig
from recap.sft.convert import convert
from recap.sft.saving import end_captions
from recap.sft.task import SftTask
from recap.sft.templates import TEMPLATES
from tests.sft.conftest import tree
from tests.sft.test_convert import original_of


def caption(folder: Path, prompt: str, image: bytes) -> Caption:
    """By the caption job's own engine."""
    settings = CaptionerConfig(model=str(folder), prompt=prompt, max_tokens=24, decode_workers=0)
    with closing(NativeEngine(settings, "cpu")) as engine:
        engine.put(Request(0, image, key="k"))
        found: list[Caption] = []
        while not found:
            found = engine.poll(1.0)
    return found[0]


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_what_is_memorised_is_captioned_and_ends(captioner: Path, tmp_path: Path, template: str) -> None:
    """Trained until it knows its one answer, exported, captioned: word for word, and not to the token limit."""
    talk = [{"from": "human", "value": "<image>\nName it."}, {"from": "gpt", "value": "a red one."}]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(photo(3))
    (tmp_path / "data.json").write_text(json.dumps([{"id": "0", "image": "0.jpg", "conversations": talk}]))
    task = SftTask(configs.check(tree(captioner, tmp_path, template=template), "test").work, captioner)
    module, micro = task.module(), task.batch(0, 1, 0, 1).micro[0]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(200):
        loss = module(micro)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.05:
            break
    assert loss.item() < 0.05
    trained = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    task.export(trained, tmp_path / "out")
    said = caption(tmp_path / "out", "Name it.\n", photo(3))
    assert (said.text, said.finish) == ("a red one.", "stop")
    ends = open_checkpoint(CaptionerConfig(model=str(tmp_path / "out"))).eos
    assert (
        micro["labels"][-1].item() in ends and AutoProcessor.from_pretrained(captioner).tokenizer.eos_token_id in ends
    )


def test_an_earlier_stages_line_break_ends_captions_no_more(captioner: Path) -> None:
    """Stage 1's template is plain; stage 2's answers may have several lines."""
    llava = LlavaForConditionalGeneration.from_pretrained(captioner, dtype=torch.float32)
    tokenizer = AutoProcessor.from_pretrained(captioner).tokenizer
    newline, eot = (
        tokenizer("a\n", add_special_tokens=False)["input_ids"][-1],
        tokenizer.convert_tokens_to_ids("<|eot_id|>"),
    )
    end_captions(llava, tokenizer, newline)
    assert llava.generation_config.eos_token_id == [1, newline]
    end_captions(llava, tokenizer, eot)
    assert llava.generation_config.eos_token_id == [1, eot]
    end_captions(llava, tokenizer, 1)
    assert llava.generation_config.eos_token_id == [1, eot]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.6}])
def test_conversion_keeps_the_generation_settings(
    captioner: Path,
    clip: Path,
    tmp_path: Path,
    settings: dict[str, Any],
) -> None:
    """End tokens and sampling, also as older checkpoints spell them (a temperature without do_sample)."""
    original_of(captioner, tmp_path / "original", tower=False)
    facts = {"eos_token_id": [1, 2], "max_length": 4096, **settings}
    (tmp_path / "original" / "generation_config.json").write_text(json.dumps(facts))
    convert(tmp_path / "original", tmp_path / "out", clip, None, "llama-3")
    eot = AutoProcessor.from_pretrained(captioner).tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert open_checkpoint(CaptionerConfig(model=str(tmp_path / "out"))).eos == (1, 2, eot)
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert all(getattr(kept, name) == value for name, value in settings.items()) and kept.max_length == 4096
