"""PyPI's torchvision beside a torch without CUDA: CPU nodes, laptops, tests.

A torchvision that was built for CUDA asks for two operators that only CUDA builds of torch register; without them
neither it nor transformers (which imports it where it finds it) can be imported, not even for models that need none of
it. Importing this package has their signatures declared whenever torchvision is imported in this process, and not
before: nothing else is loaded. `install` has every process of the environment do so, those of vLLM too.
"""

from __future__ import annotations

import importlib.machinery
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

_NAME = "recap_torchvision_shim"
_declared: list[object] = []  # the declarations live as long as their library


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        from importlib import metadata

        if not _declared and not metadata.version("torchvision").endswith("+cpu"):
            import torch

            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                _declared.append(library)
        super().exec_module(module)


class _Finder:
    shim = _NAME

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec


def install() -> None:
    """Have every process of this environment import this, by a .pth file in its site-packages."""
    packages = Path(sysconfig.get_path("purelib"))
    for name, text in ((f"{_NAME}.py", Path(__file__).read_text()), (f"{_NAME}.pth", f"import {_NAME}\n")):
        if (packages / name).is_file() and (packages / name).read_text() == text:
            continue
        new = packages / f".{name}.new"
        new.write_text(text)
        shutil.move(new, packages / name)


if not any(getattr(finder, "shim", "") == _NAME for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
