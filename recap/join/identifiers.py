"""Identifiers by which rows of two sides are joined: a rule (sha256, uid, url or key) and a value, hashed to 128
bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from recap.data.headers import without_dot_slash

RULES = ("sha256", "uid", "url", "key")
"""Strongest first."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _sha256(value: str) -> str:
    lower = value.lower()
    return lower if _SHA256.fullmatch(lower) else ""


_CLEAN: dict[str, Callable[[str], str]] = {"sha256": _sha256, "key": without_dot_slash}


def cleaned(rule: str, value: object) -> str:
    """A value as it is compared with others of its rule; "" where it is no identifier.

    >>> cleaned("sha256", "AB" * 32) == "ab" * 32, cleaned("sha256", "unknown"), cleaned("url", " http://x/A ")
    (True, '', 'http://x/A')
    """
    found = str(value).strip() if value is not None else ""
    return _CLEAN[rule](found) if rule in _CLEAN else found


def hashed(rule: str, value: str) -> bytes:
    """16 bytes: the hash of a rule and a cleaned value."""
    return blake2b(f"{rule}\0{value}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_numbers(hashes: bytes | bytearray) -> np.ndarray:
    """N concatenated hashes as uint64 [N, 2]. They are sorted by the first number, and compared by both."""
    return np.frombuffer(hashes, "<u8").reshape(-1, 2) if hashes else np.empty((0, 2), "<u8")
