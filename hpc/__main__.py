"""The commands of the cluster side."""

import sys
from pathlib import Path

from hpc.base import command_list

_FIRST = tuple(f"hpc.{name}" for name in ("launch", "status", "logs", "cancel", "rerun", "verify", "keys"))
_HIDDEN = tuple(f"hpc.{name}" for name in ("bootstrap", "engine", "gang", "stage", "local", "trial"))

if __name__ == "__main__":
    sys.exit(
        command_list.main(Path(__file__).parent, "Jobs on Slurm or here, and what becomes of them.", _FIRST, _HIDDEN)
    )
