"""The native engine: token-identical to transformers, and independent of slot, neighbours, order and
restart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.random_captioner import Shape, photo, set_end_tokens
from recap.engine import Caption, CaptionerConfig, PromptFormat, Request, load_engine, native
from recap.engine.agreement import read_images
from recap.engine.generator import Generator, Image, Text
from recap.engine.native import NativeEngine, common_prefix, fewer_slots
from tests.engine.conftest import drive

REQUESTS = [Request(i, photo(i, 30 + i % 40, 60 - i % 30), key=f"k{i}") for i in range(208)]
SOME = REQUESTS[:96]
LLAMA3 = Shape(
    hidden=72, heads=6, kv_heads=2, head_dim=16, rope="llama3", attention_bias=True, tied=True, layers=2, pad=True
)


def run(config: CaptionerConfig, requests: list[Request]) -> dict[int, Caption]:
    engine = load_engine(config)
    try:
        return drive(engine, requests)
    finally:
        engine.close()


@pytest.fixture(scope="module")
def ending(tiny: Callable[..., Path]) -> Callable[[Shape], Path]:
    """A random captioner whose end tokens are some that it does say, so that lengths differ as real ones
    do."""
    done: set[Path] = set()

    def get(shape: Shape) -> Path:
        folder = tiny(shape, seed=1)
        if folder not in done:
            engine = load_engine(CaptionerConfig(model=str(folder), max_tokens=40, micro_batch=8, decode_workers=0))
            assert isinstance(engine, NativeEngine)
            said: Counter[int] = Counter()
            original = engine._finish

            def finish(job: object, ids: list[int]) -> Caption | None:
                said.update(ids)
                return original(job, ids)  # type: ignore[arg-type]

            engine._finish = finish  # type: ignore[method-assign]
            drive(engine, REQUESTS[:40])
            engine.close()
            ends, share = [], 0.0
            for token, count in sorted(said.items(), key=lambda item: item[1]):
                if share < 0.06:
                    ends.append(token)
                    share += count / said.total()
            set_end_tokens(folder, ends)
            done.add(folder)
        return folder

    return get


@pytest.mark.slow(ci=True)
def test_tokens_equal_transformers_on_the_shipped_captioner() -> None:
    """All images of the flags set, as they lie in the tars."""
    demo = Path(__file__).parents[2] / "recap" / "demo"
    images = list(read_images(sorted((demo / "flags").glob("*.tar")), 1000))
    assert len(images) >= 200
    requests = [Request(i, image, key=str(i)) for i, image in enumerate(images)]
    config = CaptionerConfig(model=str(demo / "captioner"), max_tokens=64, micro_batch=3, slots=14, precision="fp32")
    ours = run(config, requests)
    assert ours == run(replace(config, backend="transformers", micro_batch=32), requests)
    assert len({caption.text for caption in ours.values()}) >= 100
    lengths = np.array([caption.tokens for caption in ours.values()])
    assert np.quantile(lengths, 0.9) >= 2 * np.quantile(lengths, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Shape(), LLAMA3], ids=["plain", "llama3"])
def test_tokens_equal_transformers(shape: Shape, ending: Callable[[Shape], Path]) -> None:
    """208 images in 7 slots: many refills, real end tokens, lengths that differ by more than 2x."""
    config = CaptionerConfig(model=str(ending(shape)), max_tokens=48, micro_batch=3, slots=7, precision="fp32")
    ours = run(config, REQUESTS)
    theirs = run(replace(config, backend="transformers", micro_batch=16), REQUESTS)
    assert ours == theirs
    lengths = np.array([caption.tokens for caption in ours.values()])
    assert len({caption.text for caption in ours.values()}) >= 150
    assert np.quantile(lengths, 0.9) >= 2 * np.quantile(lengths, 0.1)
    assert Counter(caption.finish for caption in ours.values())["stop"] >= 100


def test_slot_neighbours_order_and_restart_do_not_matter(ending: Callable[[Shape], Path]) -> None:
    config = CaptionerConfig(model=str(ending(Shape())), max_tokens=48, micro_batch=4, slots=8)
    whole = run(config, SOME)
    assert run(config, SOME[::-1]) == whole
    alone = run(config, [REQUESTS[17]])
    assert alone[17] == whole[17]
    # A restart: an engine is thrown away with captions in flight, another one does the rest.
    engine = load_engine(config)
    for request in REQUESTS[:12]:
        if engine.want():
            engine.put(request)
    found: dict[int, Caption] = {}
    while not found:
        found = {caption.id: caption for caption in engine.poll(0.1)}
    engine.close()
    rest = run(config, [request for request in SOME if request.id not in found])
    assert found | rest == whole


def test_logits_are_the_same_bits_in_every_slot(ending: Callable[[Shape], Path]) -> None:
    """Stronger than equal texts: one image in different slots beside different neighbours, bit for bit."""
    engine = load_engine(CaptionerConfig(model=str(ending(Shape())), max_tokens=20, micro_batch=4, slots=16))
    assert isinstance(engine, NativeEngine)
    generator: Generator[int] = engine.generator  # type: ignore[assignment]
    prompt, noise = engine.book.prompt(""), np.random.default_rng(0)
    ours = noise.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    seen = []
    for place in (0, 3, 2):
        generator.reset(generator.shapes)
        for fill in range(4):
            images = [noise.integers(0, 256, (28, 28, 3), dtype=np.uint8) for _ in range(4)]
            if fill == place:
                images[place] = ours
            texts = [Text(fill * 4 + i, prompt.ids, 20, torch.zeros(20)) for i in range(4)]
            generator.fill([Image(pixels, [text]) for pixels, text in zip(images, texts, strict=True)])
        slot = next(s for s, text in enumerate(generator.texts) if text and text.tag == place * 5)
        with torch.inference_mode():
            seen.append(generator.decoder.step(generator.tokens[:16], generator.positions[:16])[slot])
    engine.close()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


def test_sampling_gives_the_same_text_again_and_in_transformers(tiny: Callable[..., Path]) -> None:
    config = CaptionerConfig(
        model=str(tiny()),
        max_tokens=16,
        micro_batch=3,
        slots=6,
        decoding="sample",
        temperature=0.7,
        top_k=40,
        top_p=0.9,
    )
    some = REQUESTS[:24]
    found = run(config, some)
    assert run(config, some[::-1]) == found
    assert run(replace(config, backend="transformers", micro_batch=8), some) == found
    other = run(replace(config, seed=1), some)
    assert sum(other[i].text != found[i].text for i in found) > 20
    greedy = run(replace(config, decoding="greedy"), some)
    assert run(replace(config, top_k=1, top_p=1.0), some) == greedy


FORMATS = {
    "long": PromptFormat("Describe this image in detail.", weight=2),
    "short": PromptFormat("In one sentence.", max_tokens=5),
    "alt": PromptFormat("It was called {alt}; correct that.", alt_tokens=9),
}


@pytest.mark.parametrize("formats", ["choose", "all"])
def test_prompt_formats_equal_transformers(formats: str, tiny: Callable[..., Path]) -> None:
    config = CaptionerConfig(
        model=str(tiny()), prompts=FORMATS, formats=formats, max_tokens=14, micro_batch=3, slots=11, precision="fp32"
    )
    some = [Request(i, photo(i), texts={"alt": "flag " * (i % 13)}, key=f"k{i}") for i in range(36)]
    found = run(config, some)
    assert found == run(replace(config, backend="transformers", micro_batch=8), some)
    if formats == "choose":
        counts = Counter(caption.format for caption in found.values())
        assert set(counts) == set(FORMATS) and counts["long"] > counts["short"]
    else:
        assert all([other.format for other in caption.alternatives] == ["short", "alt"] for caption in found.values())
        assert all(caption.alternatives[0].tokens <= 5 for caption in found.values())


def test_formats_share_the_image(tiny: Callable[..., Path]) -> None:
    """With formats=all the image is run once: the shared part is the prefix and the image's tokens."""
    config = CaptionerConfig(model=str(tiny()), prompts=FORMATS, formats="all", max_tokens=6, micro_batch=2, slots=6)
    engine = load_engine(config)
    assert isinstance(engine, NativeEngine)
    shapes = engine.generator.shapes
    assert shapes.shared == len(common_prefix(engine.book)) + 16 and shapes.texts == 3
    drive(engine, REQUESTS[:6])
    assert engine.generator.times.fills == 3
    engine.close()


def test_bad_images_and_killed_decoders_cost_themselves(tiny: Callable[..., Path]) -> None:
    config = CaptionerConfig(model=str(tiny()), max_tokens=6, micro_batch=4, slots=8)
    engine = load_engine(config)
    good = drive(engine, REQUESTS[:8])
    for process in list(engine.pool._processes):  # type: ignore[attr-defined]
        process.kill()
    found = drive(engine, [*REQUESTS[:8], Request(900, b""), Request(901, b"x" * 99)])
    engine.close()
    assert found[900].reason == "image: zero bytes" and found[901].reason == "image: not an image"
    died = {i for i in range(8) if found[i].reason}
    assert all(found[i].reason == "image: decoder died" and found[i].transient for i in died) and len(died) <= 2
    assert all(found[i] == good[i] for i in range(8) if i not in died)


def test_out_of_memory_means_fewer_slots_and_the_same_captions(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CaptionerConfig(model=str(tiny()), max_tokens=12, micro_batch=2, slots=16)
    expected = run(config, REQUESTS[:30])
    engine = load_engine(config)
    assert isinstance(engine, NativeEngine)
    step, calls = engine.generator.step, 0

    def failing() -> list[tuple[Any, list[int]]]:
        nonlocal calls
        calls += 1
        if calls in (5, 9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return step()

    monkeypatch.setattr(engine.generator, "step", failing)
    found = drive(engine, REQUESTS[:30])
    assert engine.generator.shapes.slots == 9  # 16, 12, 9
    engine.close()
    assert {i: caption.text for i, caption in found.items()} == {i: caption.text for i, caption in expected.items()}


def test_a_batch_that_cannot_shrink_says_so(tiny: Callable[..., Path]) -> None:
    engine = load_engine(CaptionerConfig(model=str(tiny()), micro_batch=8, slots=8, decode_workers=0))
    assert isinstance(engine, NativeEngine)
    with pytest.raises(MemoryError, match="micro_batch"):
        fewer_slots(engine.generator.shapes)
    engine.close()


@pytest.mark.parametrize(
    "room,named,expected",
    [(100, {}, (8, 40)), (40, {}, (8, 22)), (16, {}, (4, 6)), (16, {"slots": 16}, (4, 6)), (3, {}, (1, 1))],
)
def test_shapes_settle_on_what_the_memory_holds(
    room: int,
    named: dict[str, int],
    expected: tuple[int, int],
    tiny: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image of a pass takes 2 of the room, a slot 1: fewer slots first, then half the micro-batch."""
    engine = load_engine(CaptionerConfig(model=str(tiny()), max_tokens=4, micro_batch=8, slots=8, decode_workers=0))
    assert isinstance(engine, NativeEngine)
    generator, sizes = engine.generator, []

    def tight(generator: Generator[object]) -> None:
        sizes.append((generator.shapes.micro_batch, generator.shapes.slots))
        if 2 * generator.shapes.micro_batch + generator.shapes.slots > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(native, "warm_up", tight)
    monkeypatch.setattr(native, "fitting_slots", lambda generator, share: 40)
    shapes = replace(generator.shapes, slots=named.get("slots", 8))
    native.fit_slots_to_memory(generator, shapes, replace(engine.config, micro_batch=None, slots=named.get("slots")))
    assert sizes[-1] == expected
    if room < 24:
        with pytest.raises(MemoryError, match="micro_batch"):  # a number that the settings name is kept
            native.fit_slots_to_memory(
                generator, shapes, replace(engine.config, micro_batch=8, slots=named.get("slots"))
            )
    engine.close()


def test_put_refuses_what_it_cannot_hold(tiny: Callable[..., Path]) -> None:
    engine = load_engine(CaptionerConfig(model=str(tiny()), max_tokens=4, queue=2, decode_workers=0))
    engine.put(REQUESTS[0])
    with pytest.raises(ValueError, match="already in flight"):
        engine.put(REQUESTS[0])
    engine.put(REQUESTS[1])
    assert engine.want() == 0
    with pytest.raises(ValueError, match="full"):
        engine.put(REQUESTS[2])
    engine.close()


def test_trimmed_captions_end_with_a_sentence(tiny: Callable[..., Path]) -> None:
    from recap.engine.captions import trim_to_sentence

    assert trim_to_sentence("A flag. It is red") == "A flag."
    assert trim_to_sentence('He says "stop!" and then') == 'He says "stop!"'
    assert trim_to_sentence("It costs 3.5 dollars and") == "It costs 3.5 dollars and"
    assert trim_to_sentence("No end") == "No end"
