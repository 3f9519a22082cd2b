"""Torch-free trainers that do as the test wants: what the gang's own tests run on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hpc.base.errors import Exit, UserError


@dataclass
class PlainConfig:
    does: str = field(default="", metadata={"execution": True})
    steps: int = 5
    step_s: float = field(default=0.0, metadata={"execution": True})


class Plain:
    Config: ClassVar[type] = PlainConfig
    version: ClassVar[int] = 1

    def __init__(self, config: PlainConfig) -> None:
        self.config = config

    def check(self, ranks: int) -> None:
        if self.config.does == "refuse":
            raise UserError(f"config: `does`: refused on {ranks} ranks")

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self, ranks: int) -> list[tuple[str, str]]:
        return [("plain", f"{ranks} ranks")]

    def train(self, gang: Any) -> int:
        if self.config.does == "usage" and gang.rank == 1:
            raise UserError("data: only this rank sees that it is wrong")
        for step in range(self.config.steps):
            gang.beat(samples=step, total=self.config.steps, step=step, checkpoint=0)
            time.sleep(self.config.step_s)
            if gang.stopping():
                return int(gang.stopping())
            if self.config.does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.config.does == "load":  # before the first step is done
                time.sleep(3600)
            if self.config.does == "long" and step:
                time.sleep(75)
        return Exit.COMPLETE
