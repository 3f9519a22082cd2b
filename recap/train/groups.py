"""The parameters of a training as a table: how many, with what learning rate and weight decay, trained or frozen.

A dry run prints it. Names and shapes need torch, which launchers do not load, so a process of its own creates the model
on the meta device, where it takes no memory, and answers in JSON. Errors, such as a pattern that matches no parameter,
are reported at launch.

Started by a launch alone, with {"trainer": dotted path, "config": {...}} on its standard input.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hpc.base.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from recap.train.settings import TrainSettings

_PATIENCE_S = 300.0  # how long importing torch and transformers may take on a slow file system
_WRAPPERS = re.compile(r"^((llava|model|transformer)\.)+")  # prefixes of names that stand for the whole model
_WIDTHS = (40, 14, 9, 8)


@dataclass(frozen=True)
class Layout:
    """A model on the meta device. title: name of the training's stage, "" where there is only one. rate: see
    `Task.rate`."""

    title: str
    module: nn.Module
    rate: Callable[[str], float]
    settings: TrainSettings


class HasLayouts(Protocol):
    """A trainer whose parameters can be listed. `layouts` loads torch, but reads no weights."""

    config: Any

    def layouts(self) -> Iterable[Layout]: ...


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate and weight decay. lr: after warm-up; None where they are frozen."""

    name: str
    parameters: int
    lr: float | None
    weight_decay: float


def groups(layout: Layout) -> list[Group]:
    """The parameters, grouped by part of the model, kind, learning rate and decay, in the model's order."""
    from recap.train.state import decayed, own_parameters

    kernels, settings = decayed(layout.module), layout.settings
    found: dict[Group, int] = {}  # number of parameters, by group with a count of 0
    for name, parameter in own_parameters(layout.module).items():
        part, _, rest = _WRAPPERS.sub("", name).partition(".")
        kernel = parameter in kernels
        if parameter.requires_grad:
            kind = "adapters" if "lora_" in rest else "kernels" if kernel else "norms, biases"
            kind = kind if kernel or parameter.ndim < 2 else "embeddings"
            decay = settings.weight_decay if kernel else 0.0
            key = Group(f"{part}: {kind}" if rest else part, 0, settings.lr * layout.rate(name), decay)
        else:
            key = Group(part, 0, None, 0.0)
        found[key] = found.get(key, 0) + parameter.numel()
    return [dataclasses.replace(kind, parameters=count) for kind, count in found.items()]


def table(trainer: HasLayouts) -> list[str]:
    """The lines that a dry run prints. UserError where the model cannot be trained with these settings."""
    kind = type(trainer)
    order = {"trainer": f"{kind.__module__}.{kind.__qualname__}", "config": dataclasses.asdict(trainer.config)}
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__], input=json.dumps(order), capture_output=True, text=True, check=False,
            timeout=_PATIENCE_S, env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        answer = json.loads(done.stdout) if not done.returncode else {}
    except (subprocess.TimeoutExpired, ValueError) as error:
        return [f"parameters: not told ({type(error).__name__} of the process that lays the model out)"]
    if "error" in answer:
        raise UserError(answer["error"])
    if not answer:
        last = (done.stderr.strip().splitlines() or ["no words"])[-1]
        return [f"parameters: not told, the model cannot be laid out on this machine ({last})"]
    return [line for title, found in answer["layouts"] for line in lines(title, [Group(**group) for group in found])]


def lines(title: str, found: list[Group]) -> list[str]:
    """The table of one layout.

    >>> print("\\n".join(lines("", [Group("lm_head: kernels", 5000, 2e-5, 0.1), Group("vision_tower", 70, None, 0.0)])))
    parameters                                       5,070       lr   decay
      lm_head: kernels                               5,000    2e-05     0.1  trained
      vision_tower                                      70        -       -  frozen
    """
    head = ("parameters" + (f", {title}" if title else ""), f"{sum(g.parameters for g in found):,}")
    rows = [(*head, "lr", "decay", "")]
    for group in found:
        rate = ("-", "-", "frozen") if group.lr is None else (f"{group.lr:.3g}", f"{group.weight_decay:g}", "trained")
        rows.append((f"  {group.name}", f"{group.parameters:,}", *rate))
    return [_row(row) for row in rows]


def _row(cells: tuple[str, ...]) -> str:
    first, *numbers, state = cells
    aligned = "".join(cell.rjust(width) for cell, width in zip(numbers, _WIDTHS[1:], strict=True))
    return f"{first:<{_WIDTHS[0]}}{aligned}  {state}".rstrip()


def main() -> None:
    from hpc.config import structured
    from hpc.trainer import load_trainer

    order = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        kind: Any = load_trainer(order["trainer"])
        trainer: HasLayouts = kind(structured(kind.Config, order["config"], "launch"))
        found = [(layout.title, [vars(group) for group in groups(layout)]) for layout in trainer.layouts()]
        answer = {"layouts": found}
    except UserError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
