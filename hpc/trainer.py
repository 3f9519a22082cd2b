"""The interface between a gang of ranks and what it trains, as `hpc.operator` is for map jobs.

A config names a trainer by its dotted path (`trainer: recap.sft.trainer.SftTrainer`). Its module must import without
torch, since login nodes check and describe it; `train` loads what is heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

from hpc.base.dotted import load


class Gang(Protocol):
    """One rank's place among the others, as a trainer sees it (the real one is `hpc.gang.rank.Rank`)."""

    rank: int
    world: int
    local_rank: int
    device: str  # "cpu" | "cuda"
    directory: Path  # of the run

    def stopping(self) -> int:
        """0, or the exit code with which this rank was told to stop. Cheap. Other ranks may have been told earlier or
        later: all of them have to agree before one stops.
        """

    def beat(self, **facts: Any) -> None:
        """A sign of life, with what status shows: `samples` done, `total` samples, `step`, `checkpoint` (the samples
        that the newest checkpoint holds).
        """

    def event(self, event: str, **facts: Any) -> None:
        """A line of the rank's journal."""


class Trainer(Protocol):
    """Constructed with its validated `Config`; cheap until `train`."""

    Config: ClassVar[type]  # dataclass; fields with metadata {"execution": True} do not enter the identity
    version: ClassVar[int]  # raised by hand when the code changes what it learns
    changes: ClassVar[dict[int, str]]  # what each version changed, to explain why an old run is refused. Optional

    def __init__(self, config: Any) -> None: ...

    def check(self, ranks: int) -> None:
        """Raise UserError for what cannot work on that many ranks: data or weights that are missing, ..."""

    def check_memory(self, ranks: int, run: Path, memory: int | None) -> None:
        """Raise UserError where a rank would need more memory than it has, as far as earlier starts of the run have
        recorded its need. memory: bytes of a rank, None where the ranks share this machine's. May be left out."""

    def identity(self) -> dict[str, Any]:
        """What makes the result besides the config's semantic fields: digests of the weights it starts from, ..."""

    def describe(self, ranks: int) -> list[tuple[str, str]]:
        """(label, text) lines for a dry run."""

    def details(self) -> list[str]:
        """Lines that take seconds to make. A dry run prints them; a launch of new work on Slurm makes them only for the
        errors that this may show. Raises UserError. May be left out."""

    def samples(self) -> int:
        """Samples of the whole training, for forecasts; 0 where only the data tells. May be left out."""

    def next_steps(self, run: str) -> list[str]:
        """Commands that use what a finished training has made. May be left out."""

    def train(self, gang: Gang) -> int:
        """Be one rank, to the end; the exit code, the same on every rank."""


def load_trainer(path: str) -> type[Trainer]:
    """The trainer class of a dotted path; UserError when it does not import."""
    return load(path, "config: `trainer`", "recap.sft.trainer.SftTrainer")
