"""webdataset tars whose bytes depend on their samples alone: no times, no owners, members as given."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO


def write_tar(
    file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]], format: int = tarfile.USTAR_FORMAT
) -> None:
    """Pack (key, {extension: bytes}) as a webdataset tar whose bytes depend on nothing else.

    Args:
        format: USTAR has no names of more than 255 bytes; tarfile.PAX_FORMAT has.
    """
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for key, files in samples:
            for extension, data in files.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                info.mode = 0o644
                tar.addfile(info, io.BytesIO(data))
