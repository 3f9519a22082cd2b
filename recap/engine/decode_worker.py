"""One decode process: encoded images come in on standard input, squares of pixels go out through shared
memory.

Started by `recap.engine.decode_pool` as `python -m recap.engine.decode_worker` and never by hand. It dies
with its parent, obeys nobody else, and imports no torch.

    request:  uint32 ring place, uint32 length, then the encoded image
    answer:   uint32 ring place, uint32 length, then "" (pixels are in the ring) or "reason\\0detail" in UTF-8
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import struct
import sys
from typing import BinaryIO

HEADER = struct.Struct("<II")
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Die with the parent, by the kernel's hand; ignore the signals that Slurm sends to a whole step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def main() -> None:
    """Answer requests until standard input ends."""
    settings = json.loads(sys.argv[1])
    die_with(settings["parent"])
    # Imported after the lines above: a worker is safe before it is ready.
    import numpy as np

    from recap.engine.decode import BadImage, Geometry, decode

    geometry = Geometry(**{**settings["geometry"], "fill": tuple(settings["geometry"]["fill"])})
    shape = (settings["places"], geometry.size, geometry.size, 3)
    ring = np.frombuffer(mmap.mmap(settings["fd"], int(np.prod(shape))), np.uint8).reshape(shape)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(HEADER.size):
        place, length = HEADER.unpack(head)
        try:
            ring[place] = decode(source.read(length), geometry, settings["max_pixels"], settings["fast"])
            answer = b""
        except BadImage as error:
            answer = f"{error.reason}\0{error.detail}".encode("utf-8", "replace")
        _send(sink, place, answer)


def _send(sink: BinaryIO, place: int, answer: bytes) -> None:
    sink.write(HEADER.pack(place, len(answer)) + answer)
    sink.flush()


if __name__ == "__main__":
    main()
