"""Runs a module as a machine would that has a GPU's packages and none of this project's others.

python -m tests.support.bare_machine MODULE [ARGUMENTS]
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

MISSING = (
    "braceexpand", "datasets", "diffusers", "duckdb", "moto", "omegaconf", "open_clip", "pycocoevalcap", "s3fs",
    "submitit", "wandb", "webdataset",
)  # fmt: skip


class _Bare(PathFinder):
    """Python's own finder, which does not see them."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname.partition(".")[0] in MISSING else super().find_spec(fullname, path, target)


if __name__ == "__main__":
    sys.meta_path[:] = [_Bare if finder is PathFinder else finder for finder in sys.meta_path]
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
