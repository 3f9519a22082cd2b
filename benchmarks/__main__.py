"""The commands that measure."""

import sys
from pathlib import Path

from hpc.base import command_list
from hpc.base.command import end_on_closed_pipe

if __name__ == "__main__":
    end_on_closed_pipe()
    sys.exit(command_list.main(Path(__file__).parent, "What is measured, and studies. Figures: docs/speed.md"))
