"""Fine-tuning: packing, logits, checkpoints, memory; each beside what one would do without it.

    python -m benchmarks.sft                     CPU, a minute; every figure
    python -m benchmarks.sft --check             the same, and exits with 1 where a target is missed
    python -m benchmarks.sft --gpu               also a training step of 8 layers of the 8 B shape, on one GPU
    python -m benchmarks.sft --json out.json

padding     share of computed or waited-for tokens that are none, on lengths like LLaVA-1.5's mix (576 image tokens and
            lognormal text; 6 % text alone), batch 128, 8 ranks: padded at random, grouped by length, packed.
step        tokens/s of forward and backward on one tiny captioner (CPU): packed against padded and grouped.
logits      loss of 1,280 positions, 10 % supervised, 128,256 words: all logits against supervised ones.
checkpoint  how long a save holds up the loop: torch.save + fsync against ours (staged, written beside the loop).
gradients   of several micro-batches under FSDP2, two ranks: held whole until the last, or summed over ranks in each.
memory      bytes a GPU of the 8 B captioner's training states, from the model's own parameters (not run).
gpu         tokens/s and MFU of optimizer steps: ours against transformers' Trainer on padded batches.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.held_gradients import gradients
from benchmarks.parts import main
from benchmarks.sft_gpu import on_gpu
from benchmarks.sft_model import CLIP_L, ROW, SMALL_TOWER, best, captioner, micro_batch, mix_lengths
from recap.sft.model import CaptionLoss, blocks
from recap.sft.packing import deal, pack
from recap.train.checkpoints import Checkpoints, Keep, StartingPoint
from recap.train.state import TrainState

BATCH, RANKS = 128, 8
TARGETS = {
    "padding share, packed": (0.03, "most"),
    "checkpoint stall, ours / torch.save": (0.5, "most"),
    "gpu MFU, ours": (0.40, "least"),
}


# --- padding ----------------------------------------------------------------------------------


def waste(plans: list[list[list[list[int]]]], lengths: list[int]) -> float:
    """Share of tokens that are padding, or that a rank waits for. plans: rank -> pass -> rows -> samples."""
    cost = 0
    for turn in range(max(map(len, plans))):
        passes = [plan[turn] if turn < len(plan) else [] for plan in plans]
        sizes = [[sum(lengths[i] for i in row) for row in rows] for rows in passes]
        cost += len(plans) * max(len(rows) * max(rows, default=0) for rows in sizes)
    return 1 - sum(lengths) / cost


def padding(batches: int = 50) -> dict[str, float]:
    """Mean waste over global batches."""
    found: dict[str, list[float]] = {"random": [], "grouped": [], "packed": []}
    for number in range(batches):
        lengths = mix_lengths(BATCH, number)
        each = BATCH // RANKS
        order = list(range(BATCH))
        by_length = sorted(order, key=lambda i: lengths[i])
        for name, samples, at_once in (("random", order, 4), ("grouped", by_length, 4)):
            random = [samples[rank * each : (rank + 1) * each] for rank in range(RANKS)]
            ranks = random if name == "random" else [samples[rank::RANKS] for rank in range(RANKS)]
            plans = [[[[i] for i in mine[s : s + at_once]] for s in range(0, each, at_once)] for mine in ranks]
            found[name].append(waste(plans, lengths))
        rows = pack(lengths, ROW, RANKS)
        found["packed"].append(waste([deal(rows, 1, rank, RANKS) for rank in range(RANKS)], lengths))
    return {f"padding share, {name}": float(np.mean(values)) for name, values in found.items()}


# --- a training step --------------------------------------------------------------------------


def step() -> dict[str, float]:
    """Useful tokens/s on one thread: 16 samples of LLaVA's proportions (64 image tokens), about 4 in a pass."""
    torch.manual_seed(0)
    module = CaptionLoss(captioner(2, 512, 1376, 8, 8, 2048, SMALL_TOWER), 1024)
    lengths = [max(8, n * 64 // 576) for n in mix_lengths(16, 3)]
    order = list(range(16))
    by_length = sorted(order, key=lambda i: lengths[i])
    ways = {
        "padded": [[[i] for i in order[s : s + 4]] for s in range(0, 16, 4)],
        "grouped": [[[i] for i in by_length[s : s + 4]] for s in range(0, 16, 4)],
        "packed": [[row] for row in pack(lengths, 512)],
    }
    found = {}
    for name, passes in ways.items():
        batches = [micro_batch(rows, lengths, 64, 112, "cpu", 2048) for rows in passes]
        seconds = best(lambda batches=batches: [module(batch).backward() for batch in batches], 3)  # type: ignore[misc]
        found[f"tokens/s, {name}"] = sum(lengths) / seconds
    return found


# --- logits -----------------------------------------------------------------------------------


def logits(positions: int = 1280, hidden: int = 1024, words: int = 128_256) -> dict[str, float]:
    """Seconds and peak memory (growth of this process) of loss and gradient; ours in chunks of 1,024."""
    torch.manual_seed(0)
    head = nn.Linear(hidden, words, bias=False)
    states = torch.randn(positions, hidden, requires_grad=True)
    labels = torch.randint(0, words, (positions,))
    keep = torch.arange(positions) % 10 == 0

    def whole() -> torch.Tensor:
        masked = labels.masked_fill(~keep, -100)
        return nn.functional.cross_entropy(head(states).float(), masked, reduction="sum")

    def supervised() -> torch.Tensor:
        return nn.functional.cross_entropy(head(states[keep]).float(), labels[keep], reduction="sum")

    assert torch.allclose(whole(), supervised(), rtol=1e-5)
    head.weight.grad, states.grad = torch.zeros_like(head.weight), torch.zeros_like(states)
    found = {}
    for name, loss in (("all", whole), ("supervised", supervised)):
        found[f"logits s, {name}"] = best(lambda loss=loss: loss().backward(), 2)  # type: ignore[misc]
        found[f"logits peak GiB, {name}"] = peak(lambda loss=loss: loss().backward())  # type: ignore[misc]
    return found


def peak(work: Callable[[], object]) -> float:
    """Growth of this process's memory while it works, GiB, looked at every millisecond."""
    import psutil

    me, most, done = psutil.Process(), [0], threading.Event()
    before = me.memory_info().rss

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], me.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(0, most[0] - before) / 2**30


# --- checkpoints ------------------------------------------------------------------------------


def checkpoint(megabytes: int = 256) -> dict[str, float]:
    """Seconds that a save keeps the loop waiting, model and AdamW's states of so many MB together."""
    width = int((megabytes * 2**20 / 12 / 8) ** 0.5)
    module = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(8)))
    optimizer = torch.optim.AdamW(module.parameters())
    torch.stack([p.sum() for p in module.parameters()]).sum().backward()
    optimizer.step()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29876"}.items():
        os.environ[name] = value
    dist.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        kept = Checkpoints(Path(folder) / "ours", StartingPoint("bench"), dist.new_group(backend="gloo"), Keep(1))
        state = TrainState(module, optimizer, None, 0)

        def plain() -> None:
            with open(Path(folder) / "plain.pt", "wb") as file:
                torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, file)
                file.flush()
                os.fsync(file.fileno())

        stalls, blocking = [], []
        for number in range(4):
            start = time.perf_counter()
            plain()
            blocking.append(time.perf_counter() - start)
            kept.wait()
            state.progress.samples = number + 1
            kept.save(state)
            stalls.append(kept.stall_s)
            kept.wait()
    dist.destroy_process_group()
    ours, theirs = min(stalls[1:]), min(blocking[1:])
    stall = {"checkpoint stall s, torch.save": theirs, "checkpoint stall s, ours": ours}
    return stall | {"checkpoint stall, ours / torch.save": ours / theirs}


# --- memory -----------------------------------------------------------------------------------


def memory() -> dict[str, float]:
    """GiB a GPU (8 of them, FSDP2, bf16 arithmetic on fp32 states) of stage 2, from the real shape's parameters."""
    with torch.device("meta"):
        model = captioner(32, 4096, 14336, 32, 8, 128_256, CLIP_L)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    block = max(sum(p.numel() for p in b.parameters()) for b in blocks(model))
    root = 2 * 128_256 * 4096 + sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    parts = {
        "weights (fp32, sharded)": 4 * (trained + frozen) / RANKS,
        "gradients (fp32, sharded)": 4 * trained / RANKS,
        "AdamW's two moments (fp32, sharded)": 8 * trained / RANKS,
        "embedding and head, gathered (bf16)": 2 * root,
        "two blocks, gathered (bf16)": 2 * 2 * block,
        "activations kept, recomputation (bf16)": 2 * 32 * ROW * 4096,
        "one block's activations (bf16, about 34 a width)": 34 * ROW * 4096,
        "logits of 1,024 positions (bf16 and fp32, with gradient)": 12 * 1024 * 128_256,
        "whole gradients while reduced, embedding and head (bf16, fp32)": 6 * root,
        "whole gradients while reduced, two blocks (bf16, fp32)": 6 * 2 * block,
    }
    found = {f"memory GiB, {name}": size / 2**30 for name, size in parts.items()}
    host = 4 * (trained + frozen) / 2**30  # rank 0 reads the whole weights and sends each rank its part
    return {
        "parameters trained": trained, "parameters frozen": frozen, **found, "memory GiB, all": sum(found.values()),
        "host memory GiB, rank 0 while it starts": host,
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, [padding, step, logits, checkpoint, gradients, memory], on_gpu, TARGETS)
