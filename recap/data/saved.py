"""Reads the JSON files of `datasets`' save_to_disk: which arrow files a data set consists of, and its splits."""

from __future__ import annotations

import json
from typing import Any

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system
from recap.data.addresses import without_credentials

STATE, SPLITS = "state.json", "dataset_dict.json"


def data_files(folder: str) -> list[str]:
    """Base names of a data set's arrow files, in the order of its rows. UserError where state.json cannot be read."""
    return _names(folder, STATE, lambda state: [str(file["filename"]) for file in state["_data_files"]])


def splits(folder: str) -> list[str]:
    """Base names of the splits' folders. UserError where dataset_dict.json cannot be read."""
    return _names(folder, SPLITS, lambda found: [str(name) for name in found["splits"]])


def _names(folder: str, name: str, read: Any) -> list[str]:
    place = f"{folder.rstrip('/')}/{name}"
    try:
        system, path = file_system(place)
        names: list[str] = read(json.loads(system.cat_file(path)))
        if bad := [name for name in names if "/" in name or name.startswith(".")]:
            raise ValueError(f"{bad[0]!r} is no name of a file beside it")
        return names
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"plan: {without_credentials(place)}: it does not say what save_to_disk writes there ({error}). Save the "
            "data set anew, or name the arrow files."
        ) from error
