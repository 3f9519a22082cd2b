"""A rank of a fine-tuning, without hpc (see tests.train.ranks)."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from hpc import config as configs
from hpc.errors import UserError
from tests.train.ranks import Alone


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    directory, tree, gang = json.loads(sys.argv[1])
    try:
        return configs.check(tree, "test").trainer().train(Alone(Path(directory), **gang))
    except UserError as error:
        logging.error("%s", error)
        return 64


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
