"""vLLM for real, on a CPU: the same captions as the native engine. Opt-in: `sh tests/engine/vllm-cpu`."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.random_captioner import Shape, photo
from hpc.base.errors import UserError
from recap.demo import CAPTIONER, FLAGS
from recap.engine import Caption, CaptionerConfig, Request, load_engine
from recap.engine.vllm_weights import check_names, rename
from tests.engine.conftest import drive
from tests.support import tiny_vlms

# Head sizes that vLLM's CPU attention takes.
SHAPE = Shape(hidden=128, heads=4, kv_heads=2, head_dim=32, vision_hidden=64, vision_heads=2)


def test_renamed_weights_load_in_transformers(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vllm_weights"):
        check_names(tiny(SHAPE))
    rename(tiny(SHAPE), tmp_path / "renamed")
    check_names(tmp_path / "renamed")
    captions = []
    for folder in (tiny(SHAPE), tmp_path / "renamed"):
        engine = load_engine(CaptionerConfig(model=str(folder), max_tokens=8, decode_workers=0))
        captions.append(drive(engine, [Request(i, photo(i)) for i in range(3)]))
        engine.close()
    assert captions[0] == captions[1]


def test_captions_equal_the_native_engine(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed; run: sh tests/engine/vllm-cpu")
    rename(tiny(SHAPE), tmp_path / "renamed")
    requests = [Request(i, photo(i, 30 + i, 60 - i), key=str(i)) for i in range(24)] + [Request(99, b"junk")]
    found, expected = both_engines(tmp_path / "renamed", requests, max_tokens=16)
    assert found[99] == expected[99] and found[99].reason == "image: not an image"
    equal = sum(found[i] == expected[i] for i in range(24))
    with capsys.disabled():
        sys.stdout.write(f"\nvLLM and the native engine: {equal} of 24 captions are equal\n")
    assert equal >= 22, f"{equal} of 24 captions are equal"


def both_engines(
    model: Path, requests: list[Request], max_tokens: int, other: str = "native"
) -> tuple[dict[int, Caption], dict[int, Caption]]:
    """vLLM's captions and another engine's. The vision tower's rounding differs (torchvision normalises in another
    order): near-ties may fall the other way."""
    config = CaptionerConfig(
        model=str(model), backend="vllm", max_tokens=max_tokens, slots=8, window=6, precision="fp32",
        cuda_graph=False, memory_share=0.5,
    )  # fmt: skip
    found = []
    for backend in ("vllm", other):
        engine = load_engine(replace(config, backend=backend))
        found.append(drive(engine, requests, limit_s=280))
        engine.close()
    return found[0], found[1]


def flags(count: int) -> list[Request]:
    """The first pictures of the shipped flags."""
    found = []
    for path in sorted(FLAGS.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(member).read() for member in tar if member.name.endswith(".png")]  # type: ignore[union-attr]
    return [Request(number, data, key=str(number)) for number, data in enumerate(found[:count])]


def test_a_fine_tuned_captioner_as_it_was_exported(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped captioner is what `configs/sft/demo.yaml` exported: vLLM reads it as it is, and says the same."""
    check_names(CAPTIONER)
    pytest.importorskip("vllm", reason="vLLM is not installed; run: sh tests/engine/vllm-cpu")
    found, expected = both_engines(CAPTIONER, flags(24), max_tokens=128)
    equal = sum(found[i] == expected[i] for i in range(24))
    with capsys.disabled():
        sys.stdout.write(f"\nvLLM and the native engine: {equal} of 24 captions of flags are equal\n")
    assert equal >= 22 and all(len(found[i].text) > 20 for i in range(24))


@pytest.mark.parametrize("name", ["idefics3", "qwen2_5_vl", "qwen3_vl"])
def test_other_models_than_llava(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same checkpoints as transformers', prepared by vLLM with the model's own processor."""
    pytest.importorskip("vllm", reason="vLLM is not installed; run: sh tests/engine/vllm-cpu")
    requests = [Request(i, photo(i, 40 + i, 50), key=str(i)) for i in range(8)] + [Request(99, b"junk")]
    found, expected = both_engines(tiny_vlms.make(name, tmp_path), requests, max_tokens=8, other="transformers")
    assert found[99] == expected[99] and found[99].reason == "image: not an image"
    equal = sum(found[i] == expected[i] for i in range(8))
    with capsys.disabled():
        sys.stdout.write(f"\nvLLM and transformers, {name}: {equal} of 8 texts are equal\n")
    assert equal >= 7, f"{equal} of 8 texts are equal"


def test_benchmark_of_vllm_runs() -> None:
    """`python -m benchmarks.gpu` calls this with a GPU's shape."""
    pytest.importorskip("vllm", reason="vLLM is not installed; run: sh tests/engine/vllm-cpu")
    from benchmarks.caption_vllm import run_vllm
    from benchmarks.caption_work import make_work

    work = make_work(SHAPE, 24, torch.device("cpu"), torch.float32)
    settings = {"dtype": "float32", "enforce_eager": True}
    found = run_vllm(SHAPE, work.pixels, work.ids, work.lengths, slots=8, **settings)
    assert found["images_per_s"] > 0 and found["window"] == 24
