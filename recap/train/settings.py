"""Settings that every training shares, as a plain dataclass. Torch-free: login nodes read and check them.

Durations are in samples, so that they do not change with the batch size. Fields marked as execution change
neither what is learned nor in which order (beyond rounding); all others enter the run's identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic


@dataclass
class TrainSettings:
    """How long, how fast, on how many devices, and what is kept. `check` says what is wrong with it."""

    samples: int = semantic(0, "Samples to train on, over all ranks; 0: epochs times the data's size")
    epochs: float = semantic(1.0, "Passes over the data, where `samples` is 0")
    batch: int = semantic(32, "Samples of one optimizer step, over all ranks")
    seed: int = semantic(0, "Seed of the order, the augmentation and the initial weights")
    lr: float = semantic(1e-3, "Learning rate after warm-up")
    warmup: float = semantic(0.03, "Share of the training with a rising learning rate; above 1: samples of it")
    schedule: str = semantic("cosine", "cosine | linear | constant, after warm-up; the first two fall towards 0")
    weight_decay: float = semantic(0.0, "AdamW's; norms, biases, embeddings and temperatures have none")
    beta1: float = semantic(0.9, "AdamW's")
    beta2: float = semantic(0.999, "AdamW's")
    eps: float = semantic(1e-8, "AdamW's")
    clip: float = semantic(1.0, "Largest norm of the gradient; 0: not clipped")
    ema: int = semantic(0, "Horizon of an exponential moving average of the weights, in samples; 0: none")
    precision: str = semantic(
        "fp32", "fp32 | tf32 (GPUs: products of fp32 numbers in TF32) | bf16 (weights and optimizer state stay fp32)"
    )
    max_rejected: float = semantic(0.01, "Share of samples that may be rejected before the run stops")

    parallel: str = execution("auto", "auto | ddp | fsdp (FSDP2 by block; auto: from 1.5 B parameters on)")
    checkpointing: bool = execution(False, "Recompute each block's activations in the backward pass")
    compile: bool = execution(False, "torch.compile each block")
    profile: list[int] = execution([], "First and last step that torch's profiler traces, e.g. [20,22]; empty: none")
    threads: int | None = execution(None, "Torch threads of a rank on the CPU; empty: as torch chooses")
    workers: int = execution(0, "Processes of a rank that read data; 0: a thread of the rank itself")
    prefetch: int = execution(2, "Steps that are read ahead, per worker")
    log_every: int = execution(0, "Samples between two lines of metrics.jsonl; 0: every step")
    save_every: int = execution(0, "Samples between two checkpoints; 0: only when told to stop and at the end")
    evaluate_every: int = execution(0, "Samples between two evaluations; 0: none. There is one at the end, too")
    keep: int = execution(2, "Newest checkpoints that are kept")
    keep_every: int = execution(0, "Checkpoints at multiples of this many samples are kept for good; 0: none")
    trackers: list[str] = execution([], "Mirrors of metrics.jsonl: tensorboard, wandb")


def check(settings: TrainSettings, ranks: int | None = None) -> None:
    """Raise UserError for the first setting that cannot work: what is wrong, where, and what to do."""

    def refuse(name: str, advice: str) -> None:
        raise UserError(f"config: `train.{name}`: {getattr(settings, name)!r}: {advice}")

    for name in ("samples", "epochs", "weight_decay", "clip", "ema", "workers", "evaluate_every", "keep_every"):
        if getattr(settings, name) < 0:
            refuse(name, "must not be negative")
    for name in ("batch", "keep", "prefetch"):
        if getattr(settings, name) < 1:
            refuse(name, "must be at least 1")
    if not settings.lr > 0:
        refuse("lr", "must be above 0, e.g. 2e-5")
    if not (0 <= settings.warmup < 1 or settings.warmup > 1):
        refuse("warmup", "is a share of the training, from 0 to below 1 (LLaVA-1.5 has 0.03), or samples, above 1")
    if settings.profile and (len(settings.profile) != 2 or not 1 <= settings.profile[0] <= settings.profile[1]):
        refuse("profile", "names a first and a last step, e.g. [20,22]")
    choices = {
        "schedule": ("cosine", "linear", "constant"),
        "precision": ("fp32", "tf32", "bf16"),
        "parallel": ("auto", "ddp", "fsdp"),
    }
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            refuse(name, f"not a choice; write one of {', '.join(allowed)}")
    for tracker in settings.trackers:
        if tracker not in ("tensorboard", "wandb"):
            refuse("trackers", f"{tracker!r} is unknown; write tensorboard or wandb")
    if ranks is not None and settings.batch < ranks:
        refuse("batch", f"smaller than the {ranks} ranks: some would have nothing to do. Raise it or use fewer")
    if ranks is not None and settings.batch % ranks:
        nearest = max(settings.batch // ranks, 1) * ranks
        refuse("batch", f"does not divide among {ranks} ranks. Write {nearest} or {nearest + ranks}")


def learning_rate(settings: TrainSettings, done: int, total: int) -> float:
    """The factor of the learning rate, in (0, 1], for the step that ends at `done` of `total` samples.

    While the rate rises, a step has the rate of its end; while it falls, that of its beginning, so that no step has the
    rate 0.

    >>> settings = TrainSettings(batch=1, warmup=0.5, schedule="linear")
    >>> [round(learning_rate(settings, done, 8), 2) for done in (2, 4, 6, 8)]
    [0.5, 1.0, 0.75, 0.25]
    """
    rising = warmup_share(settings, total)
    if rising and done / total <= rising:
        return done / total / rising
    left = min((1 - (done - settings.batch) / total) / (1 - rising), 1.0)
    if settings.schedule == "constant":
        return 1.0
    return left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def warmup_share(settings: TrainSettings, total: int) -> float:
    """Share of `total` samples with a rising rate; 1 and more where warm-up is as long as the training."""
    return settings.warmup if settings.warmup < 1 else settings.warmup / total


def length_in_words(settings: TrainSettings) -> str:
    """The length of the whole training in words, as far as the config says."""
    return f"{settings.samples:,} samples" if settings.samples else f"{settings.epochs:g} times the data"


def length(settings: TrainSettings, size: int) -> int:
    """Samples of the whole training, in whole steps, where an epoch has `size`."""
    samples = settings.samples or round(settings.epochs * size)
    return -(-samples // settings.batch) * settings.batch
