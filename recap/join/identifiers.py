"""What tells that two rows are of one image: a rule (sha256, uid, url, key) and a value, hashed to 128 bits."""

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
    """An identifier as it is compared; "" where it is none.

    >>> cleaned("sha256", "AB" * 32) == "ab" * 32, cleaned("sha256", "unknown"), cleaned("url", " http://x/A ")
    (True, '', 'http://x/A')
    """
    found = str(value).strip() if value is not None else ""
    return _CLEAN[rule](found) if rule in _CLEAN else found


def hashed(rule: str, value: str) -> bytes:
    """16 bytes of a cleaned identifier."""
    return blake2b(f"{rule}\0{value}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_numbers(hashes: bytes | bytearray) -> np.ndarray:
    """Hashes, one behind another, as uint64 [N, 2]: the first number orders, both together tell."""
    return np.frombuffer(hashes, "<u8").reshape(-1, 2) if hashes else np.empty((0, 2), "<u8")
