"""Texts of samples, decoded from bytes: a text member, or a key inside a JSON member."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, MissingShards, Shard
from recap.data.kind import Wanted
from recap.data.kinds import samples_of

LONGEST_TEXT = 1 << 16  # characters of an original text that are kept
_LARGEST_JSON = 1 << 24  # bytes of the largest JSON member that is parsed, which takes many times as much memory
_PROBED = 1000  # samples of the first shard in which `check_key` looks for a key
_MARKS = (  # byte order marks, the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def decoded(data: bytes, longest: int | None = None) -> tuple[str, str]:
    """(the text, a phrase about what is odd, else ""). Byte order marks are removed. UTF-16 is recognised by its mark,
    or by its NUL bytes.

    Args:
        longest: how many characters are kept; None: all.
    """
    encoding, mark = _encoding(data)
    kept = data[mark:] if longest is None else data[mark : mark + 4 * longest]
    whole = len(kept) == len(data) - mark
    note = "" if encoding == "utf-8" else f"text: {encoding[:6].upper()} (converted)"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(kept, final=whole)
    except UnicodeDecodeError:
        text, note = kept.decode("utf-8", "replace"), "text: not UTF-8 (kept as replaced)"
    if longest is not None and (len(text) > longest or not whole):
        text, note = text[:longest], note or f"text: cut at {longest:,} characters"
    return text, note


def clean(text: str) -> str:
    """The text without what UTF-8 cannot encode: JSON may contain half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _encoding(data: bytes) -> tuple[str, int]:
    """(encoding, bytes of its mark). Without a mark, every second byte of Latin text in UTF-16 is NUL."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    start, pairs = data[:4096], min(len(data), 4096) // 2
    if pairs >= 2 and len(data) % 2 == 0:
        even, odd = start[::2].count(0), start[1::2].count(0)
        if max(even, odd) > pairs / 2 and min(even, odd) <= pairs / 20:
            return ("utf-16-le" if odd > even else "utf-16-be"), 0
    return "utf-8", 0


def text_digest(text: str) -> int:
    """64 bits of SHA-256 of a text, as a signed integer. Texts that differ only in case and white space have the same.

    >>> text_digest(" A  Red car") == text_digest("a red car\\n")
    True
    """
    plain = " ".join(text.lower().split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(plain).digest()[:8], "little", signed=True)


class TextMember:
    """Where a sample's text is: a member's extension, and the path to a key where the member is JSON.

    Args:
        path: keys of objects and indices of lists, outermost first; (): the member itself is the text.
    """

    def __init__(self, member: str, path: Sequence[str] = ()) -> None:
        self.member, self.path = member.lower().lstrip("."), tuple(path)

    @classmethod
    def named(cls, spec: str) -> TextMember:
        """From a `data.text` of a config: `txt`, or the path to a key after `json`: `json.caption`, `json.texts.0`."""
        parts = spec.lstrip(".").split(".")
        at = next((i for i, part in enumerate(parts) if part.lower() == "json"), len(parts) - 1)
        return cls(".".join(parts[: at + 1]), parts[at + 1 :])

    def read(
        self, members: Mapping[str, bytes], odd: Mapping[str, str] | None = None, longest: int | None = None
    ) -> tuple[str | None, str]:
        """(a sample's text, None where it has none; a phrase about what is odd, else ""). A list of strings becomes one
        text of so many lines.

        Args:
            odd: members that cannot be read, see recap.data.tars.Sample. longest: characters that are kept.
        """
        data = members.get(self.member)
        if data is None:
            return None, f"text: {(odd or {}).get(self.member, 'missing')}"
        if not self.path:
            return decoded(data, longest)
        value, problem = self.value(data)
        if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
            value = "\n".join(value)
        if problem or value is None:
            return None, problem or "text: missing"
        if not isinstance(value, str):
            return None, "text: neither a string nor a list of strings"
        return decoded(value.encode("utf-8", "replace"), longest)  # replaces lone surrogates

    def value(self, data: bytes) -> tuple[Any, str]:
        """(the value at the path in a JSON member, why it cannot be parsed)."""
        found, problem = _parsed(data)
        for key in self.path:
            found = _entry(found, key)
        return found, problem


def _parsed(data: bytes) -> tuple[Any, str]:
    if len(data) > _LARGEST_JSON:
        return None, f"text: in JSON of more than {_LARGEST_JSON >> 20} MiB"
    try:
        return json.loads(decoded(data)[0]), ""
    except (ValueError, RecursionError):
        return None, "text: in damaged JSON"


def _entry(found: Any, key: str) -> Any:
    if isinstance(found, dict):
        return found.get(key)
    return found[int(key)] if isinstance(found, list) and key.isdecimal() and int(key) < len(found) else None


def check_key(name: str, text: TextMember, shards: Sequence[Shard]) -> None:
    """UserError where the first shard's samples show that a key inside a JSON member is not there."""
    first = next((shard for shard in shards if shard.etag != MissingShards.ETAG), None)
    if not text.path or first is None:
        return
    seen, keys = 0, Counter[str]()
    try:
        for sample in islice(samples_of(first, Wanted(members=frozenset([text.member]))), _PROBED):
            if isinstance(sample, Damage) or text.read(sample.members)[0] is not None:
                return
            seen += 1
            found = _parsed(sample.members.get(text.member, b""))[0]
            keys.update(list(found) if isinstance(found, dict) else [])
    except (OSError, ShardError):
        return  # reported when the shard is worked on
    if seen:
        there = f"Its keys: {', '.join(k for k, _ in keys.most_common(12))}." if keys else "They have no such member."
        raise UserError(
            f"config: `{name}`: none of the first {seen:,} samples of {first.uri} has a text under "
            f"{'.'.join(text.path)} in its {text.member} member. {there}"
        )
