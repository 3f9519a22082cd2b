"""The commands of the work: captions, data, evaluation, fine-tuning."""

import sys
from pathlib import Path

from hpc import commands

if __name__ == "__main__":
    sys.exit(commands.main(Path(__file__).parent, "Captions, and what is trained on them. Jobs: python -m hpc.launch"))
