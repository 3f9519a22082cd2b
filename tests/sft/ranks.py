"""A rank of a fine-tuning, without hpc (see tests.train.ranks)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import recap.torchvision_shim  # noqa: F401 - before transformers
from hpc import config as configs
from hpc.base.errors import UserError
from recap.sft import model as models
from recap.sft import task
from tests.train.ranks import Alone


def work(directory: str, tree: dict[str, Any], gang: dict[str, Any]) -> int:
    """Train as one rank; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    if os.environ.get("ONE_READER") and os.environ["RANK"] != "0":
        del models.load, task.model_identity  # whoever reads the weights here crashes
    try:
        return configs.check(tree, "test").trainer().train(Alone(Path(directory), **gang))
    except UserError as error:
        logging.error("%s", error)
        return 64
