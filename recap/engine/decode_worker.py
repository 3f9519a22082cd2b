"""One decode process: encoded images come in on standard input, squares of pixels go out through shared
memory.

Started by `recap.engine.decode_pool` as `python -m recap.engine.decode_worker` and never by hand. It dies
with its parent, obeys nobody else, and imports no torch.

    request:  uint32 ring place, uint32 length, then the encoded image
    question: uint32 NEEDS, uint32 MiB: may an image that takes so much be decoded now? Answered with one byte
    answer:   uint32 ring place, uint32 length, then "reason\\0detail\\0note" in UTF-8; without a reason the pixels are
              in the ring
"""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import BinaryIO

from hpc.base.processes import leave_signals_to_parent

HEADER = struct.Struct("<II")
NEEDS = 0xFFFFFFFF


def die_with(parent: int) -> None:
    """Die with the parent, by the kernel's hand; ignore the signals that Slurm sends to a whole step."""
    leave_signals_to_parent()
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


def main() -> None:
    """Answer requests until standard input ends."""
    settings = json.loads(sys.argv[1])
    die_with(settings["parent"])
    # Imported after the lines above: a worker is safe before it is ready.
    from recap.data.images import BadImage, EncodedImage
    from recap.data.memory import FREE
    from recap.engine.decode import Geometry
    from recap.engine.rings import Rings

    geometries = [Geometry.of_json(given) for given in settings["geometries"]]
    rings = Rings(settings["fd"], geometries, settings["places"])
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(HEADER.size):
        place, length = HEADER.unpack(head)
        try:
            encoded = EncodedImage(source.read(length), settings["max_pixels"])
            if encoded.cost > FREE:
                _send(sink, NEEDS, -(-encoded.cost >> 20))
                source.read(1)
            note = rings.fill(place, encoded, settings["fast"])
            answer = f"\0\0{note}"
        except BadImage as error:
            answer = f"{error.reason}\0{error.detail}\0"
        content = answer.encode("utf-8", "replace")
        _send(sink, place, len(content), content)


def _send(sink: BinaryIO, head: int, number: int, content: bytes = b"") -> None:
    sink.write(HEADER.pack(head, number) + content)
    sink.flush()


if __name__ == "__main__":
    main()
