"""Writes a trained captioner so that transformers, the caption job and vLLM can load it.

    python -m recap.sft.export RUN OUT [--samples N]      a checkpoint of a run (default: the newest)

Frozen parameters are copied bit for bit from the checkpoint that training started from, and adapters are merged. The
keys of a CLIP tower begin with `vision_tower.vision_model.`, which vLLM expects and transformers accepts. Needs memory
for one model.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from hpc.base.errors import Exit, Parser, UserError
from hpc.run.directory import Run
from recap.sft.saving import write


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
