"""Files on the Hugging Face Hub (`hf://datasets/org/name/data/*.parquet`, by fsspec).

A repository changes while a run is at work, so a run is planned on one commit of it. A launch over a run that exists
goes on with that run's commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from hpc.base.errors import UserError

_REPOSITORY = re.compile(
    r"hf://(?P<kind>(?:datasets|spaces|models)/)?(?P<id>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<path>/.*|)$"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Pins:
    """Puts commits into hf:// addresses. notes: sentences that say which repository is at which commit.

    Args:
        planned: addresses of the shards of a run that exists.
    """

    def __init__(self, planned: Iterable[str]) -> None:
        found = (_REPOSITORY.match(place) for place in planned if place.startswith("hf://"))
        self._known = {_repository(f): f["revision"] for f in found if f and _COMMIT.fullmatch(f["revision"] or "")}
        self._asked: dict[tuple[str, str], str] = {}
        self.notes: list[str] = []

    def pinned(self, pattern: str) -> str:
        """An hf:// pattern with a commit in it; other addresses as they are. UserError: the Hub does not know it."""
        found = _REPOSITORY.match(pattern) if pattern.startswith("hf://") else None
        if found is None or _COMMIT.fullmatch(found["revision"] or ""):
            return pattern
        name, revision = _repository(found), unquote(found["revision"] or "")
        if (name, revision) not in self._asked:
            known = self._known.get(name)
            self._asked[name, revision] = known or _commit(found, name, revision)
            why = "as this run was planned" if known else revision or "its newest"
            self.notes.append(f"{name} is commit {self._asked[name, revision][:12]} ({why})")
        return f"{name}@{self._asked[name, revision]}{found['path']}"


def _repository(found: re.Match[str]) -> str:
    return f"hf://{found['kind'] or ''}{found['id']}"


def _commit(found: re.Match[str], name: str, revision: str) -> str:
    from huggingface_hub import HfApi  # 0.3 s: only where there is such an address

    kind = (found["kind"] or "models/").rstrip("/").removesuffix("s")
    try:
        about: Any = HfApi().repo_info(found["id"], repo_type=kind, revision=revision or None)
    except Exception as error:
        raise UserError(
            f"plan: {name}{'@' * bool(revision)}{revision}: the Hub gives no such revision "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Correct data.shards; private ones need "
            "HF_TOKEN in the environment."
        ) from error
    return str(about.sha)
