"""Start-up without what is not needed: pyarrow imports pandas, if it is installed, to see if a list is a Series.

That costs half a second and 60 MB, in every agent and at every look at the status.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not used in this process", name=fullname)
        return None


def without_pandas() -> None:
    """Make `import pandas` fail in this process, as if it were not installed. Only for processes that we start."""
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas())
