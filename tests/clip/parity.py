r"""open_clip and clip_benchmark, for parity: optional, since they want torchvision. Beside the environment, not in it:

pip install --no-deps --target parity open_clip_torch timm torchvision ftfy wcwidth clip-benchmark \
    scikit-learn scipy joblib threadpoolctl narwhals
PYTHONPATH=parity pytest tests/clip/test_weights.py tests/clip/test_evaluate.py
"""

from __future__ import annotations

from typing import Any

import pytest

import recap.torchvision_shim  # noqa: F401 - before transformers


def open_clip() -> Any:
    """The module; the test is skipped where it or torchvision is not installed."""
    pytest.importorskip("torchvision")
    return pytest.importorskip("open_clip")
