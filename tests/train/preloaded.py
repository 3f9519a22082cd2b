"""What the ranks of trainings need: their fork server imports this once, and no rank imports any of it again.

What was made so far is kept from garbage collection: each rank would visit all of it, and so copy its pages.
"""

import gc
import importlib

for _name in (
    "diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha",
    "omegaconf",
    "recap.clip.task",
    "recap.dit.task",
    "recap.sft.task",
    "recap.train.loop",
    "tests.sft.ranks",
    "tests.train.ranks",
    "tests.train.tiny",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.distributed.fsdp",
):
    importlib.import_module(_name)

gc.freeze()
