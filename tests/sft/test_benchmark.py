"""The benchmark's parts that no CPU run of it reaches, and the table that it fills."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import held_gradients, sft, sft_gpu, sft_model

TABLE = Path(__file__).parents[2] / "benchmarks/results/sft.md"


def test_both_training_steps_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m benchmarks.sft --gpu` on a tiny shape: ours, and transformers' Trainer."""
    monkeypatch.setattr(sft_gpu, "STEPS", 1)
    monkeypatch.setattr(sft_gpu, "ROW", 512)
    tower = {**sft_model.SMALL_TOWER, "num_hidden_layers": 1, "image_size": 56}
    shape = sft_gpu.Slice(layers=1, hidden=64, ffn=128, heads=2, kv=1, words=256, vision=tower)
    found = sft_gpu.on_gpu(shape, "cpu")
    assert found.keys() == {"gpu tokens/s, ours", "gpu tokens/s, transformers"} and min(found.values()) > 0


@pytest.mark.slow
def test_gradients_are_held_or_sent() -> None:
    """What `recap.train.parallel.reduces_once_per_step` reckons with: 4 bytes a trained parameter, or that in each
    micro-batch."""
    found, whole = held_gradients.gradients(), 4 * held_gradients.LAYERS * held_gradients.WIDTH**2 / 2**20
    held, sent = (
        [found[f"gradients {what}, {way}"] for way in held_gradients.WAYS] for what in ("held MiB", "sent MiB a step")
    )
    assert held == [whole, 0] and sent == [whole, held_gradients.MICRO_BATCHES * whole]


def test_table_of_bytes() -> None:
    """What the document says of 8 B on 8 GPUs is what the model's parameters come to."""
    text, found = TABLE.read_text(), sft.memory()
    for name, size in found.items():
        if name.startswith("memory"):
            assert f"| {name.removeprefix('memory GiB, ')} | {size:.2f} |" in text, name
    assert f"{found['parameters trained']:,} parameters trained" in text
    assert found["memory GiB, all"] < 70  # of 80
