"""Samples of a DiT during its training, always for the same texts and from the same noise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.fsdp import register_fsdp_forward_method

from hpc.base import atomic
from recap.dit.contact_sheet import as_png, contact_sheet
from recap.dit.objective import Objective
from recap.dit.sampling import Sampler, Wanted, scheduler_of
from recap.dit.settings import DitConfig
from recap.dit.text_encoder import TextEncoder
from recap.randomness import draw
from recap.train.task import EvaluationContext

log = logging.getLogger(__name__)

FOLDER = "samples"  # in the run directory; hpc.status names its newest picture
_BATCH = 32


class Grid:
    """Draws a picture with one row for each of `grid.prompts`.

    Args:
        text_encoder: with weights; used where the trained module has no text encoder of its own.
    """

    def __init__(self, config: DitConfig, text_encoder: TextEncoder) -> None:
        self._config, self._text_encoder = config.grid, text_encoder
        self._scheduler = scheduler_of("dpm", config.objective.kind, config.model.learned_sigma)
        self._known: set[int] = set()  # modules that were made ready

    def draw(self, module: Objective, context: EvaluationContext) -> dict[str, Any]:
        """Draw samples/<samples>.png in the run directory; return {"grid": its path}. The ranks share the work; rank 0
        writes."""
        ranks, config = context.ranks, self._config
        if not config.prompts:
            return {}
        within = _ModuleSampler(module, self._text_encoder)
        if id(module) not in self._known:
            for method in ("predict", "text_states"):
                register_fsdp_forward_method(module, method)
            self._known.add(id(module))
        wanted = [
            Wanted(prompt, draw("grid", row, column) >> 1, config.guidance)
            for row, prompt in enumerate(config.prompts)
            for column in range(config.columns)
        ]
        each = -(-len(wanted) // ranks.world)  # every rank must do the same number of forward passes
        whole = wanted + [wanted[-1]] * (each * ranks.world - len(wanted))
        sampler = Sampler(
            within, within, module.codec(ranks.device), self._scheduler, config.steps, min(each, _BATCH),
            context.between,
        )  # fmt: skip
        mine = sampler.draw(whole[ranks.rank * each : (ranks.rank + 1) * each])
        found = [torch.empty_like(mine) for _ in range(ranks.world)]
        dist.all_gather(found, mine, group=ranks.control)
        name = f"{FOLDER}/{context.samples:015d}.png"
        failed = 0.0
        if ranks.rank == 0:
            try:
                target = context.directory / name
                target.parent.mkdir(exist_ok=True)
                atomic.replace(target, self._picture(torch.cat(found)))
            except OSError as error:  # does not end the training
                log.error("%s is not written: %s", name, error)
                failed = 1.0
        return {} if ranks.sums([failed])[0] else {"grid": name}

    def _picture(self, images: torch.Tensor) -> bytes:
        columns = self._config.columns
        pictures = [Image.fromarray(image) for image in images.numpy()]
        rows = [
            (prompt, pictures[row * columns : (row + 1) * columns]) for row, prompt in enumerate(self._config.prompts)
        ]
        return as_png(contact_sheet(rows))


class _ModuleSampler:
    """Stands for transformer and text encoder in a `Sampler`. It calls them through the trained module, since FSDP2
    gathers parameters only there."""

    def __init__(self, module: Objective, text_encoder: TextEncoder) -> None:
        self._module: Any = module
        self._texts, self.context, self.parameters = text_encoder, text_encoder.context, module.parameters

    @property
    def config(self) -> Any:
        return self._module.transformer.config

    def encode(self, texts: Sequence[str], pad_to: int) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.parameters()).device
        if self._module.text_encoder is None:
            states, mask = self._texts.encode(texts, pad_to)
            return states.to(device), mask.to(device)
        tokens = {name: value.to(device) for name, value in self._texts.tokens(texts, pad_to).items()}
        return self._module.text_states(tokens), tokens["mask"]

    def __call__(
        self,
        noised: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        timestep: torch.Tensor,
        return_dict: bool,
    ) -> tuple[torch.Tensor]:
        return (self._module.predict(noised, timestep, encoder_hidden_states, encoder_attention_mask),)
