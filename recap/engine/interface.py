"""The one interface behind which every captioning engine stands. Torch-free: login nodes import it.

An engine is an asynchronous bag: `put` requests while `want() > 0`, `poll` finished captions in any order.
A caption depends on its own request and the engine's settings alone, never on batch neighbours, slot or
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from recap.engine.formats import Said

TOO_LONG = "prompt: too long"  # for the model's context
REFUSED = "image: refused by the model's processor"


@dataclass(frozen=True, slots=True)
class Request:
    """One row to write a text for.

    id: chosen by the caller, unique among requests in flight.
    image: the encoded image file (JPEG, PNG, WebP, ...), as found in the tar; None where formats show none.
    texts: what the columns say that formats name, such as `{alt}`.
    key: the sample's key; seeds sampling and weighted prompt choice, so that a rerun gives the same text.
    """

    id: int
    image: bytes | None
    texts: Mapping[str, Said] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, slots=True)
class Caption:
    """What became of a request.

    text, tokens, finish: the caption, the number of generated tokens (end token not counted) and why it ended
        ("stop": the model said so, "length": the token limit). Empty, 0 and "" when `reason` is set.
    reason: "" for success, else a short fixed phrase that names why there is no caption, e.g. "image:
        truncated".
    transient: True where a second try may succeed (a decode worker was killed), False for damage in the
        input.
    detail: the particulars of `reason` (exception text, sizes); never used for grouping.
    note: a short fixed phrase for what is odd about an image that was captioned all the same.
    format: name of the prompt format that was used, "" when there is only one; `name#1`, `name#2`, ... of its further
        samples.
    alternatives: the captions of the other formats, where each image is captioned in all of them, and other samples.
    """

    id: int
    text: str = ""
    tokens: int = 0
    finish: str = ""
    reason: str = ""
    transient: bool = False
    detail: str = ""
    note: str = ""
    format: str = ""
    alternatives: tuple[Caption, ...] = ()


class Engine(Protocol):
    """A loaded model that captions. Built by `recap.engine.load_engine`; one per process, one device each.

    It may have `starved_s`: seconds until now in which the model stood still for want of requests or of decoded images,
    and the part of others for which it could have worked on more at once.
    """

    def want(self) -> int:
        """How many more requests can be put now without waiting."""

    def put(self, request: Request) -> None:
        """Accept a request. Never blocks on the model; raises ValueError if `want()` was 0."""

    def poll(self, timeout: float) -> list[Caption]:
        """Advance the work and return finished captions; wait up to `timeout` seconds for the first one.

        With requests in flight, an engine makes progress only inside poll (or in its own threads and
        processes); when fewer requests than a full batch are in flight and the timeout passes, the partial
        batch is run.
        """

    def close(self) -> None:
        """Release processes and memory. Requests in flight are forgotten."""
