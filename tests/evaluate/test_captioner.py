"""The captioner score: its definitions, and what the shipped captioner reaches on real flags."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hpc.base.errors import Exit
from recap.demo import CAPTIONER, FLAGS_TRUTH
from recap.evaluate.captioner import Truth, caption_flags, main, read_truth, score, wilson

CHILE = Truth("cl", "canton", (), {"red": 0.5, "white": 0.34, "blue": 0.15, "green": 0.004})
MALI = Truth("ml", "vertical", ("green", "yellow", "red"), {"green": 0.33, "yellow": 0.33, "red": 0.33, "black": 0.02})


@pytest.mark.parametrize(
    ("named", "right"),
    [
        ({"green", "yellow", "red"}, True),
        ({"green", "yellow", "red", "black"}, True),  # 2 %: may be named, need not
        ({"green", "yellow"}, False),
        ({"green", "yellow", "red", "blue"}, False),
    ],
)
def test_small_colours_may_be_named_absent_ones_may_not(named: set[str], right: bool) -> None:
    assert MALI.colours_right(frozenset(named)) is right


def test_shades_are_forgiven_and_a_missing_caption_is_wrong() -> None:
    captions = {"ml": "Three vertical bands of green (hoist side), gold, and maroon."}
    report = score([CHILE, MALI], captions)
    assert report.missing == 1
    assert {name: (share.right, share.total) for name, share in report.shares.items()} == {
        "colours": (1, 2),
        "layout": (1, 2),
        "band order": (1, 1),
        "all": (1, 2),
    }
    assert report.per_colour["red"] == (1, 1, 2, 1)
    parts = [counts for colour, counts in report.per_colour.items() if colour != "any"]
    assert report.per_colour["any"] == tuple(sum(column) for column in zip(*parts, strict=True))


def test_wilson_interval_covers_known_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-3)
    assert wilson(81, 100) == pytest.approx((0.7222, 0.8749), abs=1e-3)


def test_the_command_reads_column_files_and_prints_json(tmp_path: Path) -> None:
    """The factbook's own shape of text, written as a caption column, is scored by the command."""
    truths = read_truth(FLAGS_TRUTH, "heldout")
    captions = [f"{len(truth.bands)} {truth.layout} bands of {', '.join(truth.bands)}" for truth in truths]
    status = ["ok" if truth.bands else "failed" for truth in truths]
    table = pa.table({"key": [truth.key for truth in truths], "status": status, "caption": captions})
    (tmp_path / "ab").mkdir()
    pq.write_table(table, tmp_path / "ab" / "00000.g0.parquet")
    command = [sys.executable, "-m", "recap.evaluate.captioner", str(tmp_path), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert report["missing"] == status.count("failed") > 0
    assert report["shares"]["band order"]["value"] == 1.0
    assert 0.4 < report["shares"]["layout"]["value"] < 0.9


def test_captions_of_something_else_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"key": ["dog"], "status": ["ok"], "caption": ["a dog"]}), tmp_path / "0.parquet")
    assert main([str(tmp_path)]) == Exit.USAGE
    said = capsys.readouterr()
    assert "none of the 1 captions" in said.err and "--references COLUMN" in said.err and not said.out


def test_the_shipped_captioner_keeps_its_floors_on_flags_it_never_saw() -> None:
    torch.set_num_threads(1)  # on a shared machine two threads that wait for each other are slower than one
    truths = read_truth(FLAGS_TRUTH, "heldout")
    report = score(truths, caption_flags(CAPTIONER, [truth.key for truth in truths]))
    assert report.missing == 0
    for name, floor in (("colours", 0.85), ("layout", 0.86), ("band order", 0.84), ("all", 0.74)):
        share = report.shares[name]
        assert share.value >= floor, f"{name}: {share.value:.1%}"
        assert share.interval[0] > share.majority, f"{name} is not clearly above the best constant caption"


def test_the_checkpoint_loads_whole_and_names_its_keys_as_vllm_wants() -> None:
    from safetensors import safe_open
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, loading = LlavaForConditionalGeneration.from_pretrained(CAPTIONER, output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with safe_open(CAPTIONER / "model.safetensors", "pt") as weights:
        vision = [key for key in weights.keys() if key.startswith("vision_tower.")]  # noqa: SIM118
    assert vision and all(key.startswith("vision_tower.vision_model.") for key in vision)
    processor = AutoProcessor.from_pretrained(CAPTIONER)
    tokenizer = processor.tokenizer
    assert (tokenizer.pad_token, tokenizer.eos_token, processor.image_token) == ("<pad>", "<eos>", "<image>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    content = [{"type": "image"}, {"type": "text", "text": "Describe naïve 旗."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert prompt == "USER: <image>\nDescribe naïve 旗.\nASSISTANT:\n"
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt  # any text encodes without loss
