"""Settings of a fine-tuning, as plain dataclasses. Torch-free: login nodes read and check them."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from recap.sft.source import Source
from recap.train.settings import TrainSettings

KINDS = ("llava", "sharegpt", "messages", "columns", "world")


@dataclass
class LoraSettings:
    """Low-rank adapters (peft) instead of full matrices; `rank: 0` means none."""

    rank: int = semantic(0, "Rank of the adapters; LLaVA's recipe has 128")
    alpha: int = semantic(256, "Scale of the adapters, times rank")
    dropout: float = semantic(0.05, "Dropout before the adapters")
    targets: str = semantic(
        r".*language_model.*\.(q|k|v|o|gate|up|down)_proj", "Regular expression of the matrices that get one"
    )


@dataclass
class SftConfig:
    """A stage of fine-tuning. `check` says what is wrong with it."""

    model: str = execution("", "Folder of the LLaVA checkpoint to start from (its digests enter the identity)")
    make: str = semantic("", "Instead of `model`: dotted path of a function(folder, seed) that writes one")
    template: str = semantic("vicuna", "Conversation template: plain | vicuna | llama-3 | short")
    system: str | None = semantic(None, "System text instead of the template's own")
    data: list[Source] = semantic([], "Where the conversations come from")
    held_out: list[Source] = execution([], "Conversations that are not learned from: their loss is in metrics.jsonl")
    trainable: list[str] = semantic([], "Regular expressions; parameters whose name matches one are trained")
    rates: dict[str, float] = semantic({}, "Learning rates by regular expression of names, instead of train.lr")
    lora: LoraSettings = field(default_factory=LoraSettings)
    max_tokens: int = semantic(2048, "Longest sample in tokens, image included")
    too_long: str = semantic("truncate", "truncate (as LLaVA does) | reject: longer samples")
    pack: int = execution(0, "Tokens of a row into which whole samples are packed; 0: one sample a row")
    rows: int = execution(1, "Rows of one forward pass")
    logit_chunk: int = execution(1024, "Supervised positions whose logits exist at a time; 0: all at once")
    attention: str = execution(
        "auto", "auto (flex_attention on GPUs, sdpa on CPUs) | sdpa | flash_attention_2 | flex_attention | eager"
    )
    dtype: str = execution("auto", "Numbers of the exported weights: auto (as `model`) | fp32 | bf16 | fp16")
    train: TrainSettings = field(default_factory=TrainSettings)


def check(config: SftConfig) -> None:
    """Raise UserError for the first setting that cannot work: what is wrong, where, and what to do."""
    from recap.sft.templates import TEMPLATES

    def refuse(name: str, advice: str) -> None:
        raise UserError(f"config: `{name}`: {advice}")

    if bool(config.model) == bool(config.make):
        refuse("model", "name the checkpoint to start from (or `make`, one of the two); see recap.sft.assemble")
    if config.dtype not in ("auto", "fp32", "bf16", "fp16"):
        refuse("dtype", f"{config.dtype!r} is unknown. Write auto, fp32, bf16 or fp16.")
    if config.template not in TEMPLATES:
        refuse("template", f"{config.template!r} is unknown. Write one of {', '.join(TEMPLATES)}.")
    if config.too_long not in ("truncate", "reject"):
        refuse("too_long", f"{config.too_long!r}: write truncate or reject")
    if not config.trainable:
        refuse("trainable", "nothing would be trained. LLaVA-1.5: [multi_modal_projector] in stage 1.")
    if config.pack and config.pack < config.max_tokens:
        refuse("pack", f"{config.pack} is less than max_tokens ({config.max_tokens}): such samples fit no row")
    if config.rows < 1 or config.max_tokens < 1 or config.logit_chunk < 0 or config.lora.rank < 0:
        refuse("rows", "rows and max_tokens must be at least 1; logit_chunk and lora.rank not negative")
    for pattern in [*config.trainable, *config.rates, config.lora.targets]:
        try:
            re.compile(pattern)
        except re.error as error:
            refuse("trainable", f"{pattern!r} is no regular expression ({error})")
    for pattern, rate in config.rates.items():
        if not rate > 0:
            refuse("rates", f"{pattern}: {rate} is no learning rate; write one above 0")
    if not config.data:
        refuse("data", "no source. Write - {kind: llava, path: FILE.json, images: FOLDER}")
    if bool(config.held_out) != bool(config.train.evaluate_every):
        refuse("held_out", "and train.evaluate_every go together: what, and how often. One of them is missing")
    for name in ("data", "held_out"):
        for number, source in enumerate(getattr(config, name)):
            _check_source(f"{name}[{number}]", source)
    planned = any(source.kind == "columns" for source in [*config.data, *config.held_out])
    if planned and config.train.workers > 1:
        refuse("train.workers", f"{config.train.workers}: each would hold its own window of the tars. Write 1")


def _check_source(where: str, source: Source) -> None:
    from recap.sft.dialogues import check as check_dialogues

    def refuse(name: str, advice: str) -> None:
        raise UserError(f"config: `{where}.{name}`: {advice}")

    if source.kind not in KINDS:
        refuse("kind", f"{source.kind!r} is unknown. Write one of {', '.join(KINDS)}.")
    if not source.path:
        refuse("path", "missing")
    if source.kind not in ("columns", "world"):
        if not Path(source.path).is_file():
            refuse("path", f"{source.path} does not exist")
        if source.images and not Path(source.images).is_dir() and not glob.glob(source.images):
            refuse("images", f"{source.images} is neither a folder nor an archive that exists")
        check_dialogues(where, source)
    if source.keep and source.kind != "columns":
        refuse("keep", f"is of tars; {source.kind} has none. Leave it out")
    if source.kind == "columns":
        from recap.sft.tars import check as check_tars

        if source.column and not Path(source.column).is_dir():
            refuse("column", f"{source.column!r} is neither a run directory nor a folder of parquet files")
        check_tars(where, source)
    if source.kind == "world" and not source.samples:
        refuse("samples", "a world has no end: say how many samples make an epoch")
    if source.kind in ("columns", "world") and not source.prompts:
        refuse("prompts", "empty: the model would be asked nothing")
    if source.repeat < 1 or source.samples < 0:
        refuse("repeat", "repeat must be at least 1, samples not negative")
