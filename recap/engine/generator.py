"""The device's side of the native engine: images into slots, one decode step for all slots, finished slots
out.

Every pass has one fixed shape (n images, B slots), filled up where work is missing. A caption is therefore
computed by the same kernels on the same shapes whatever its neighbours, its slot and its order, and comes out
the same.

    fill:   n images -> vision -> prefill into n free slots -> first tokens
    step:   one token for every slot; on CUDA one captured graph, whose results the host reads one step late
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from recap import device as gpu
from recap.engine.checkpoint import Normalisation
from recap.engine.llama import Decoder
from recap.engine.sampling import Sampler
from recap.engine.vision import ImageEncoder

Tag = TypeVar("Tag")


@dataclass
class Text(Generic[Tag]):
    """One caption to write: `tag` is the caller's; `ids` the prompt's tokens with the image's repeated token.

    limit: most tokens to write, the end token included.
    random_numbers: float32 [max_tokens], what sampling draws with.
    """

    tag: Tag
    ids: list[int]
    limit: int
    random_numbers: torch.Tensor


@dataclass
class Image(Generic[Tag]):
    """An image and the captions to write of it: one, or one for each of the generator's `suffixes`.

    pixels: None where the generator has no eyes.
    """

    pixels: np.ndarray | None
    texts: list[Text[Tag]]


@dataclass(frozen=True)
class Shapes:
    """Shapes of a generator.

    micro_batch: n, images of a vision and prefill pass.
    slots: B, captions written at a time.
    max_tokens: most tokens of a caption.
    prefix: tokens that every prompt starts with, before the image; their keys and values are computed once.
    width: longest prompt, prefix and image included.
    shared: tokens (prefix, image) that the captions of one image share and that are run once for all of them;
        0: each image has one caption, whose prompt is run in one pass.
    texts: captions of an image.
    """

    micro_batch: int
    slots: int
    max_tokens: int
    prefix: tuple[int, ...]
    width: int
    image_token: int
    eos: tuple[int, ...]
    shared: int = 0
    texts: int = 1

    @property
    def span(self) -> int:
        """Positions of a slot."""
        return self.width + self.max_tokens


@dataclass
class _Copy:
    """The host's view of one step: tensors that the device copies into, and the event after which they are
    there."""

    active: torch.Tensor
    counts: torch.Tensor
    tokens: torch.Tensor
    round: np.ndarray
    event: Any = None


@dataclass
class Times:
    """Passes since the start, for reports: fills, images in them, steps, and slots that were busy in them."""

    fills: int = 0
    images: int = 0
    steps: int = 0
    busy: int = 0


class Generator(Generic[Tag]):
    """A loaded captioner with its slots.

    Args:
        model: transformers' `LlavaForConditionalGeneration`, or a causal language model, on any device; its weights are
            copied or shared.
        shapes: the shapes.
        normalise: turns 8-bit pixels into the vision tower's input; None: texts alone are written, without images.
        image_size: pixels a side.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Any,
        shapes: Shapes,
        sampler: Sampler,
        normalise: Normalisation | None,
        image_size: int,
        device: torch.device,
        dtype: torch.dtype,
        fp8: bool = False,
        kv_fp8: bool = False,
        cuda_graph: bool = True,
    ) -> None:
        device = gpu.numbered(device)
        self.shapes, self.sampler, self.device, self.dtype = shapes, sampler, device, dtype
        self.image_size, self.kv_fp8 = image_size, kv_fp8
        self.graphed = cuda_graph and device.type == "cuda"
        self.normalise = normalise
        with gpu.current(device):
            self.encoder = None if normalise is None else ImageEncoder(model, device, dtype)
            self.decoder = Decoder(model, shapes.slots, shapes.span, device, dtype, fp8, kv_fp8)
        self.times = Times()
        self.reset(shapes)

    @torch.inference_mode()
    def reset(self, shapes: Shapes) -> None:
        """Forget all slots and take new shapes (their number may differ, the prompt may not)."""
        self.shapes = shapes
        self._graph: Any = None
        slots, device = shapes.slots, self.device
        if self.decoder.slots != slots:
            self.decoder.keys = self.decoder.values = torch.empty(0)  # given back before the new cache is made
            self.decoder.allocate(slots, self.kv_fp8)
        # One entry more than there are slots: rows of a fill without a caption go there.
        self.tokens = torch.zeros(slots + 1, dtype=torch.long, device=device)
        self.positions = torch.full((slots + 1,), shapes.span - 1, dtype=torch.long, device=device)
        self.counts = torch.zeros(slots + 1, dtype=torch.long, device=device)
        self.limits = torch.ones(slots + 1, dtype=torch.long, device=device)
        self.active = torch.zeros(slots + 1, dtype=torch.bool, device=device)
        self.out = torch.zeros(slots + 1, shapes.max_tokens + 1, dtype=torch.int32, device=device)
        self.random_numbers = torch.zeros(slots + 1, shapes.max_tokens + 1, device=device)
        self.eos = torch.tensor(shapes.eos, device=device)
        self.free = list(range(slots - 1, -1, -1))
        self.texts: list[Text[Tag] | None] = [None] * slots
        # A slot's round is counted up when it is filled: copies of an older round say nothing about it.
        self.rounds = np.zeros(slots, dtype=np.int64)
        self._copies: list[_Copy] = []
        self._overwritten: set[int] = set()  # slots whose prefix is another's
        with gpu.current(device):
            self._keep_prefix(range(slots + 1))

    def busy(self) -> int:
        """Slots in use."""
        return self.shapes.slots - len(self.free)

    def room(self) -> bool:
        """Whether a full micro-batch can be filled in now."""
        return len(self.free) >= self.shapes.micro_batch * self.shapes.texts

    @torch.inference_mode()
    def fill(self, images: Sequence[Image[Tag]], width: int | None = None, prefixed: bool = True) -> None:
        """Start the captions of up to `micro_batch` images in free slots. Rows without an image repeat the
        last one.

        Args:
            width: tokens that the prompts are filled up to, if not the longest prompt's.
            prefixed: False where the prompts do not begin with the shapes' prefix.
        """
        with gpu.current(self.device):
            self._fill(images, width or self.shapes.width, prefixed)
        self.times.fills += 1
        self.times.images += len(images)

    def _features(self, rows: Sequence[Image[Tag]]) -> torch.Tensor | None:
        if self.encoder is None or self.normalise is None:
            return None
        found = [row.pixels for row in rows if row.pixels is not None]
        pixels = gpu.pinned((self.shapes.micro_batch, *found[0].shape), torch.uint8, self.device)
        np.stack(found, out=pixels.numpy())
        return self.encoder(self.normalise(pixels.to(self.device, non_blocking=True), self.dtype))

    def _fill(self, images: Sequence[Image[Tag]], width: int, prefixed: bool) -> None:
        shapes = self.shapes
        rows = [images[min(i, len(images) - 1)] for i in range(shapes.micro_batch)]
        features = self._features(rows)
        slots = np.full((shapes.texts, shapes.micro_batch), shapes.slots)
        for i, image in enumerate(images):
            for j, text in enumerate(image.texts):
                slots[j, i] = slot = self.free.pop()
                self.texts[slot] = text
                self.rounds[slot] += 1
        start = len(shapes.prefix) if prefixed else 0
        self._see_to_prefix(slots, prefixed)
        if shapes.shared and features is not None:
            self._prefill_shared(features, slots)
            start = shapes.shared
        for j in range(shapes.texts):
            texts = [row.texts[j] for row in rows]
            self._prefill_texts(texts, slots[j], start, width, None if shapes.shared else features)

    @torch.inference_mode()
    def step(self) -> list[tuple[Tag, list[int]]]:
        """Advance all slots by a token; the captions known to be finished, as (tag, ids with the end
        token)."""
        if self.busy():
            self.times.steps += 1
            self.times.busy += self.busy()
            with gpu.current(self.device):
                if self.graphed:
                    self._graph = self._graph or self._capture()
                    self._graph.replay()
                else:
                    self._advance()
                self._copies.append(self._copy())
        # On CUDA the host reads the step before the one it has just queued, and never waits for an idle
        # device.
        if len(self._copies) > (1 if self.device.type == "cuda" and self.busy() else 0):
            return self._finished(self._copies.pop(0))
        return []

    def _advance(self) -> None:
        """The decode step. In place, with fixed shapes and without synchronising: it is captured."""
        slots = self.shapes.slots
        active, counts = self.active[:slots], self.counts[:slots]
        at = counts[:, None]
        chance = counts if self.sampler.greedy else self.random_numbers[:slots].gather(1, at).squeeze(1)
        chosen = self.sampler.choose(self.decoder.step(self.tokens[:slots], self.positions[:slots]), chance)
        # Idle slots go on too, where it does no harm: their token lands behind those they have, their key and value
        # behind the prompt, and neither place is read before a fill writes it again.
        self.out[:slots].scatter_(1, at, chosen[:, None].int())
        self.tokens[:slots] = chosen
        counts += active
        self.positions[:slots] += active
        active &= ~(self._ends(chosen) | (counts >= self.limits[:slots]))

    def _ends(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens[:, None] == self.eos).any(-1)  # torch.isin may synchronise

    def _capture(self) -> Any:
        """The decode step as one CUDA graph."""
        state = [self.tokens, self.positions, self.counts, self.limits, self.active, self.out]
        saved = [tensor.clone() for tensor in state]
        graph = gpu.capture(self.device, self._advance)
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)
        return graph

    def _copy(self) -> _Copy:
        """Start copying what the host must know of this step."""
        slots = self.shapes.slots
        if self.device.type != "cuda":
            return _Copy(self.active[:slots], self.counts[:slots], self.out, self.rounds.copy())
        sources = (self.active, self.counts, self.out)
        found = [gpu.pinned(tuple(t.shape), t.dtype, self.device).copy_(t, non_blocking=True) for t in sources]
        return _Copy(found[0][:slots], found[1][:slots], found[2], self.rounds.copy(), gpu.mark())

    def _finished(self, copy: _Copy) -> list[tuple[Tag, list[int]]]:
        if copy.event is not None:
            copy.event.synchronize()
        done = []
        for slot in (~copy.active).nonzero().flatten().tolist():
            text = self.texts[slot]
            if text is None or copy.round[slot] != self.rounds[slot]:
                continue
            done.append((text.tag, copy.tokens[slot, : int(copy.counts[slot])].tolist()))
            self.texts[slot] = None
            self.free.append(slot)
        return done

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        """Onto the device without waiting for what it is doing (copies from ordinary memory would)."""
        if self.device.type == "cpu":
            return tensor
        copy = gpu.pinned(tuple(tensor.shape), tensor.dtype, self.device).copy_(tensor)
        return copy.to(self.device, non_blocking=True)

    def _keep_prefix(self, slots: Sequence[int]) -> None:
        """Write the shared prefix's keys and values into these slots."""
        prefix = self.shapes.prefix
        if not prefix or not slots:
            return
        x = F.embedding(torch.tensor([prefix], device=self.device), self.decoder.embedding)
        at = torch.tensor(slots, device=self.device)
        self.decoder.prefill(x, at[:1], 0, None)
        if len(slots) > 1:
            self.decoder.copy(at[:1], at[1:], 0, len(prefix))

    def _see_to_prefix(self, slots: np.ndarray, prefixed: bool) -> None:
        """Prompts that do not begin with the prefix write over it; the next that do find it again."""
        used = {int(slot) for slot in slots.flat}
        if not prefixed:
            self._overwritten |= used
        elif again := sorted(used & self._overwritten):
            self._keep_prefix(again)
            self._overwritten -= used

    def _prefill_shared(self, features: torch.Tensor, slots: np.ndarray) -> None:
        """Run the image once for all captions of it, and copy its keys and values to their slots."""
        shapes, first = self.shapes, self._place(torch.from_numpy(slots[0]))
        start = len(shapes.prefix)
        self.decoder.prefill(features, first, start, None)
        for row in slots[1:]:
            self.decoder.copy(first, self._place(torch.from_numpy(row)), start, shapes.shared)

    def _prefill_texts(
        self, texts: list[Text[Tag]], slots: np.ndarray, start: int, width: int, features: torch.Tensor | None
    ) -> None:
        """Run each row's prompt from position `start` on; its first token and all state go to its slot."""
        shapes = self.shapes
        ids = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
        lengths = torch.tensor([len(text.ids) for text in texts])
        limits = torch.tensor([text.limit for text in texts])
        random_numbers = torch.stack([text.random_numbers for text in texts])
        ids, lengths, limits, random_numbers = (self._place(t) for t in (ids, lengths, limits, random_numbers))
        at = self._place(torch.from_numpy(slots))
        ids = ids[:, start:]
        x = F.embedding(ids, self.decoder.embedding)
        if features is not None:
            x = x.masked_scatter((ids == shapes.image_token)[..., None], features)
        logits = self.decoder.prefill(x, at, start, lengths - 1)
        assert logits is not None
        first = self.sampler.choose(logits, random_numbers[:, 0])
        self.tokens[at], self.positions[at], self.counts[at] = first, lengths, torch.ones_like(lengths)
        self.limits[at], self.random_numbers[at, :-1] = limits, random_numbers
        self.out[at, 0] = first.int()
        self.active[at] = ~(self._ends(first) | (limits <= 1))
