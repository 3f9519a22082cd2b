"""The commands of the cluster side."""

import sys
from pathlib import Path

from hpc.base import command_list
from hpc.base.command import end_on_closed_pipe

_FIRST = tuple(f"hpc.{name}" for name in ("launch", "status", "logs", "cancel", "rerun", "verify", "keys"))
# Commands that other commands start, and people do not.
_OWN = (
    "base.keeper",
    "drilling.life",
    "drilling.witness",
    "gang.rank",
    "gate",
    "map.check",
    "pipeline.stage",
    "worker",
)
HIDDEN = tuple(f"hpc.{name}" for name in _OWN)

if __name__ == "__main__":
    end_on_closed_pipe()
    sys.exit(
        command_list.main(Path(__file__).parent, "Jobs on Slurm or here, and what becomes of them.", _FIRST, HIDDEN)
    )
