"""Packs an array with metadata into one binary value of a column: a safetensors file in memory. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hpc.base.errors import UserError


def pack(name: str, array: np.ndarray, metadata: Mapping[str, str]) -> bytes:
    """The bytes of an array, under a name, with metadata."""
    return save({name: np.ascontiguousarray(array)}, metadata=dict(sorted(metadata.items())))


def unpack(blob: bytes, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """(the array of that name, the metadata). UserError where the value is something else, such as an image."""
    try:
        array = load(blob)[name]
        length = int.from_bytes(blob[:8], "little")
        return array, json.loads(blob[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"data: a value that is no safetensors blob with {name!r} in it. The column is not what its name says, or "
            f"`field` names another: the field of such columns is {name!r}."
        ) from error


def fits_fp16(array: np.ndarray) -> bool:
    """Whether all values are in the range of fp16. False where any is NaN."""
    return bool((np.abs(array) <= np.finfo(np.float16).max).all())
