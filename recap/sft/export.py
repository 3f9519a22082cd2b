"""Write a trained captioner for others: transformers, the caption job, vLLM.

    python -m recap.sft.export RUN OUT [--samples N]      a checkpoint of a run (default: the newest)

Frozen parameters are copied from the checkpoint that training began from, bit for bit; adapters are merged. The keys
of a CLIP tower read `vision_tower.vision_model.`, as vLLM wants and transformers accepts. Needs one model's memory.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.base.errors import Exit, Parser, UserError
from hpc.run.directory import Run
from recap.sft.saving import write

if TYPE_CHECKING:
    pass

_PREFIX = "llava."  # of the model inside CaptionLoss


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of a fine-tuning")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, help="which checkpoint, by its name (default: the newest whole one)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from recap.sft.trainer import start_of
    from recap.train.checkpoints import read_model

    try:
        run = Run(args.run)
        submission = run.latest()
        config = submission.checked()
        from recap.sft.task import SftTask

        task = SftTask(config.work, start_of(config.work, run.path))
        write(task, read_model(run.path / "checkpoints", task.module(), args.samples), args.out)
    except UserError as error:
        logging.error("%s", error)
        return Exit.USAGE
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
