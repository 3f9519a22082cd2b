"""Shows training samples as the model will get them, with supervised words marked, and counts rejected samples.

    python -m recap.sft.inspect configs/sft/align.yaml [key=value ...] [--samples 3] [--check 1000]

Supervised words are between ▶ and ◀ (green on a terminal), and an image's tokens are shown as <image> × n. --check
renders more samples without showing them, and counts rejections and how full packed rows are. Exit codes: 0, or 1 if
more samples are rejected than `train.max_rejected` allows, 64 for a wrong config.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hpc import config as configs
from hpc.base.errors import Exit, Parser, UserError
from recap.sft.packing import pack
from recap.sft.task import Ready, SftTask
from recap.sft.templates import BadSample, Rendered
from recap.sft.trainer import SftTrainer, start_of


def marked(task: SftTask, rendered: Rendered) -> Text:
    """A sample's text as the model sees it, its supervised part between ▶ and ◀."""
    out, image, learned = Text(), task.processor.tokenizer.convert_tokens_to_ids(task.processor.image_token), False
    run: list[int] = []

    def flush() -> None:
        if run:
            out.append(task.processor.tokenizer.decode(run), style="green" if learned else "")
            run.clear()

    count = 0
    for token, answer in zip(rendered.ids, rendered.learned, strict=True):
        if answer != learned:
            flush()
            out.append("▶" if answer else "◀", style="bold")
            learned = answer
        if token == image:
            flush()
            count += 1
            continue
        if count:
            out.append(f"<image> × {count}", style="dim")
            count = 0
        run.append(token)
    flush()
    if learned:
        out.append("◀", style="bold")
    return out


def survey(task: SftTask, count: int) -> tuple[list[Ready], Counter[str]]:
    """(the first usable samples of the stream, how many others are not usable by reason). Images are opened too."""
    good: list[Ready] = []
    bad: Counter[str] = Counter()
    for position in range(count):
        try:
            ready = task.ready(position)
            for handle in ready.example.images:
                ready.source.image(handle)
            good.append(ready)
        except BadSample as error:
            bad[error.reason] += 1
    return good, bad


def report(task: SftTask, show: int, check: int, console: Console) -> int:
    """Print the report; return the exit code. show, check: how many samples are shown, and rendered."""
    check = min(check, task.size())  # each sample once: behind the last the stream begins again
    good, bad = survey(task, check)
    for ready in good[:show]:
        learned = sum(ready.rendered.learned)
        console.rule(f"{ready.example.key} · {len(ready.rendered.ids)} tokens, {learned} learned", style="dim")
        console.print(marked(task, ready.rendered), soft_wrap=True)
    console.rule(style="dim")
    lengths = [len(ready.rendered.ids) for ready in good]
    total, longest = sum(lengths), max(lengths, default=0)
    console.print(f"{len(good)} of {check} samples can be used; {total:,} tokens, longest {longest:,}")
    for reason, number in bad.most_common():
        console.print(f"rejected: {number} × {reason}", style="red", markup=False)
    if task.config.pack and good:
        batch, capacity = task.config.train.batch, task.config.pack
        rows = sum(len(pack(lengths[first : first + batch], capacity)) for first in range(0, len(lengths), batch))
        console.print(f"rows of {capacity:,} tokens are filled to {total / (rows * capacity):.1%}")
    allowed = task.config.train.max_rejected
    if sum(bad.values()) <= allowed * check:
        return Exit.COMPLETE
    console.print(
        f"more than train.max_rejected={allowed:g} of all allows: a training stops once it has met more than "
        f"{max(allowed * 1000, 0):g} of them. Mend or leave them out (keep: RUN of a caption run), or allow more.",
        style="red",
        markup=False,
    )
    return Exit.INCOMPLETE


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, see configs/sft/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    parser.add_argument("--samples", type=int, default=3, help="how many to show (default: 3)")
    parser.add_argument("--check", type=int, default=100, help="how many to render (default: 100)")
    args = parser.parse_intermixed_args(arguments)
    try:
        config = configs.load(args.config, args.overrides)
        if config.work_class is not SftTrainer:
            raise UserError(f"config: {args.config} names no `trainer: recap.sft.trainer.SftTrainer`")
        config.trainer().check(1)
        with tempfile.TemporaryDirectory() as made:
            task = SftTask(config.work, start_of(config.work, Path(made), make=True))
            return report(task, args.samples, max(args.check, args.samples), Console(highlight=False))
    except UserError as error:
        logging.error("%s", error)
        return Exit.USAGE


if __name__ == "__main__":
    sys.exit(main())
