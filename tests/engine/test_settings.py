"""Settings, identity and prompts: typed, checked, torch-free."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hpc import config as configs
from hpc.base.errors import UserError
from recap.engine import CaptionerConfig, PromptFormat, check
from recap.engine.checkpoint import open_checkpoint
from recap.engine.identity import captioner_identity
from recap.generate.operator import GenerateOperator
from recap.generate.settings import GenerateConfig
from recap.model_files import file_digest, model_identity
from recap.randomness import uniform


def test_every_field_has_help_and_omegaconf_reads_them() -> None:
    for config in (CaptionerConfig, PromptFormat):
        assert all(item.metadata["help"] for item in fields(config))
    merged = OmegaConf.merge(
        OmegaConf.structured(CaptionerConfig), {"slots": 4, "prompts": {"short": {"text": "What?"}}}
    )
    config = OmegaConf.to_object(merged)
    assert isinstance(config, CaptionerConfig) and config.prompts["short"] == PromptFormat("What?")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""},
        {"backend": "tensorrt"},
        {"decoding": "beam"},
        {"max_tokens": 0},
        {"top_p": 1.5},
        {"prompt": " "},
        {"template": "{prompt}"},
        {"backend": "openai"},
        {"backend": "transformers", "precision": "fp8"},
        {"prompts": {"a": PromptFormat("x", weight=0)}},
        {"prompts": {"a": PromptFormat("x", max_tokens=500)}},
    ],
)
def test_settings_that_cannot_work_say_so(changes: dict[str, object]) -> None:
    check(CaptionerConfig(model="x"))
    with pytest.raises(UserError, match=r"^captioner\.\w+.* = .*: .*; .*\.$|^captioner\.\w+.*needs .*"):
        check(replace(CaptionerConfig(model="x"), **changes))  # type: ignore[arg-type]


def test_login_nodes_need_no_torch() -> None:
    source = (
        "import sys, recap.engine, recap.engine.identity, recap.engine.prompts, recap.engine.lint\n"
        "assert not {'torch', 'transformers', 'omegaconf'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", source], check=True, cwd=root)


def test_identity_is_what_makes_the_captions(tiny: Callable[..., Path], tmp_path: Path) -> None:
    base = CaptionerConfig(model=str(tiny()))
    identity = captioner_identity(base, tmp_path)
    assert set(identity) == {"model"} and "model.safetensors" in identity["model"]
    assert captioner_identity(replace(base, slots=3, threads=1, decode_workers=0), tmp_path) == identity
    change: dict[str, Any]
    for change in (
        {"max_tokens": 9},
        {"geometry": "pad"},
        {"prompt": "Why?"},
        {"prompts": {"a": PromptFormat("x")}},
    ):
        assert captioner_identity(replace(base, **change), tmp_path) != identity


def test_digests_are_cached_by_size_and_time(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache"
    file.write_bytes(b"one")
    first = file_digest(file, cache)
    (entry,) = cache.iterdir()
    entry.write_text("damaged")
    assert file_digest(file, cache) == first
    file.write_bytes(b"three")
    assert file_digest(file, cache) != first


def test_missing_model_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path, "org/model"):
        with pytest.raises(FileNotFoundError, match=r"safetensors.*expected there") as caught:
            model_identity(path)
        assert str(path) in str(caught.value)


# Prompts.


def test_prompt_ids_equal_the_processor(tiny: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(CaptionerConfig(model=str(tiny())))
    processor, book = checkpoint.processor, checkpoint.book
    from PIL import Image

    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": CaptionerConfig().prompt}],
            }
        ],
        add_generation_prompt=True,
    )
    expected = processor(images=Image.new("RGB", (30, 20)), text=text)["input_ids"][0]
    assert book.prompt("").ids == list(expected)


def test_alt_text_keeps_within_its_budget(tiny: Callable[..., Path]) -> None:
    form = PromptFormat("Improve {alt} please.", alt_tokens=12)
    book = open_checkpoint(CaptionerConfig(model=str(tiny()), prompts={"alt": form})).book
    bound = book.length("alt")
    alts = [
        "",
        "Flag of Chile",
        "x " * 5000,
        "\U0001f1e8\U0001f1f1 é漢字" * 50,
        "<image><image></s><s>",
        "\ue001{alt}\n\n",
    ]
    for alt in alts:
        ids = book.prompt("alt", {"alt": alt}).ids
        assert len(ids) <= bound and ids.count(book.image_token_id) == book.image_tokens
        assert ids.count(book.tokenizer.eos_token_id) == 0
    assert "Flag of Chile" in book.text("alt", {"alt": "Flag  of\nChile"})


def test_formats_are_chosen_by_weight_and_key(tiny: Callable[..., Path]) -> None:
    forms = {
        "long": PromptFormat("Tell all.", weight=3),
        "short": PromptFormat("Be brief."),
        "off": PromptFormat("x", weight=0),
    }
    book = open_checkpoint(CaptionerConfig(model=str(tiny()), prompts=forms)).book
    drawn = [book.names(f"key{i}")[0] for i in range(4000)]
    assert drawn == [book.names(f"key{i}")[0] for i in range(4000)]
    counts = Counter(drawn)
    assert counts["off"] == 0 and abs(counts["long"] / 4000 - 0.75) < 0.03


def test_chance_depends_on_its_arguments_alone() -> None:
    numbers = uniform(1, "key", "tokens", 5)
    assert (numbers[:3] == uniform(1, "key", "tokens", 3)).all()
    assert (numbers != uniform(2, "key", "tokens", 5)).all() and (numbers != uniform(1, "kez", "tokens", 5)).all()
    assert abs(uniform(0, "k", "t", 10_000).mean() - 0.5) < 0.02


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/prompts/*.yaml")), ids=lambda p: p.stem)
def test_shipped_prompt_formats_are_valid(path: Path) -> None:
    """Each file is an overlay of the captioner's settings, or the `base` of a generating job."""
    tree = configs.read(path)
    if "prompts" not in tree:
        columns: dict[str, dict[str, str]] = {
            column: {} for form in tree["formats"].values() for column in re.findall(r"\{(\w+)\}", form["text"])
        }
        writer = {"backend": "openai", "endpoint": "http://x/v1", "served_model": "x"}
        made = {**tree, "writer": writer, "data": {"columns": columns}}
        GenerateOperator(configs.structured(GenerateConfig, made, path.name))
        return
    merged = OmegaConf.merge(OmegaConf.structured(CaptionerConfig(model="x")), OmegaConf.load(path))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, CaptionerConfig) and config.prompts
    check(config)
    if path.stem == "paper":
        assert config.prompts["paper"].text == CaptionerConfig().prompt
