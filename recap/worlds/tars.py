"""webdataset tars whose bytes depend on their samples alone: no times, no owners, members as given."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO


def write_tar(file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Pack (key, {extension: bytes}) as a webdataset tar whose bytes depend on nothing else."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, files in samples:
            for extension, data in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
