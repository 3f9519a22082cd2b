"""Uploads a folder to a data set on the Hugging Face Hub, with the Hub's own client, in several commits.

Files that the data set has already are not uploaded again. The client itself would read and upload files on Xet storage
again, so that it is given only those that the Hub lacks, by sha256 (or by git's digest where a file is small).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpc.base.errors import UserError
from recap.model_files import file_digest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 5
MOST_FILES = 10_000
"""The Hub's limit on the files of one folder."""
_ALWAYS_THERE = ".gitattributes"  # a file that the Hub makes
_RETRIED = (429, 500, 502, 503, 504)  # HTTP codes of requests that the client does not retry itself
_LONGEST_WAIT_S = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class Sent:
    """What an upload did. address: URL of the data set. files, bytes: that were sent. known: files that it had
    already."""

    address: str
    files: int
    bytes: int
    known: int


@dataclass(frozen=True)
class _Difference:
    """Paths that the repository lacks, has with other content, and has although the folder does not."""

    missing: list[str]
    changed: list[str]
    foreign: list[str]


def send(folder: Path, repo: str, title: str, *, private: bool = False, update: bool = False) -> Sent:
    """Upload a folder to the data set `repo`, until it has the same files.

    Args:
        title: of the commits.
        update: files of the repository that differ are replaced, and those that the folder does not have are deleted.

    Raises:
        UserError: there is no token, or it has no right to write; the repository has other content; somebody else keeps
            committing to it; or the Hub cannot be reached.
    """
    local = _files(folder)
    with _as_user_errors(repo):
        return _Upload(folder, local, title, update).run(repo, private)


class _Upload:
    def __init__(self, folder: Path, local: Mapping[str, Path], title: str, update: bool) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the client is imported
        from huggingface_hub import HfApi

        self._folder, self._local, self._title, self._update = folder, local, title, update
        self._api: HfApi = HfApi()
        self._repo, self._sent = "", set[str]()

    def run(self, repo: str, private: bool) -> Sent:
        self._repo = repo
        if "/" not in repo or not _with_retries(lambda: self._api.repo_exists(repo, repo_type="dataset")):
            create = partial(self._api.create_repo, repo, repo_type="dataset", private=private, exist_ok=True)
            self._repo = _with_retries(create).repo_id
        conflicts, to_delete = 0, None
        while conflicts < TRIES:
            head, difference = self._compare()
            self._refuse(difference, first=to_delete is None)
            # Only files that were there at the start are deleted, none that others add meanwhile.
            to_delete = difference.foreign if to_delete is None else sorted({*to_delete} & {*difference.foreign})
            wanted = [*difference.missing, *difference.changed]
            if not wanted and not (self._update and to_delete):
                there = len(self._local) - len(self._sent)
                url = f"{self._api.endpoint}/datasets/{self._repo}"
                return Sent(url, len(self._sent), sum(self._local[n].stat().st_size for n in self._sent), there)
            if conflicts == 0 and self._sent & {*wanted}:
                lost = min(self._sent & {*wanted})
                raise UserError(f"publish: {self._repo} took {lost}, and does not have it. Does a .gitignore name it?")
            conflicts += not self._upload(wanted, to_delete if self._update else [], head)
        raise UserError(self._conflict_message())

    def _upload(self, wanted: list[str], to_delete: list[str], head: str | None) -> bool:
        """Upload and delete files in commits upon `head`. False where the repository changed meanwhile (HTTP 412)."""
        from huggingface_hub.errors import HfHubHTTPError

        with tempfile.TemporaryDirectory(prefix="publish-") as links:
            for name in wanted:
                link = Path(links, name)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._local[name])
            try:
                _with_retries(
                    lambda: self._api.upload_folder(
                        repo_id=self._repo,
                        repo_type="dataset",
                        folder_path=links,
                        commit_message=self._title,
                        parent_commit=head,
                        delete_patterns=[glob.escape(name) for name in to_delete] or None,
                    )
                )
            except HfHubHTTPError as error:
                if error.response.status_code != 412:
                    raise
                return False
            finally:
                self._sent |= {*wanted}
        return True

    def _compare(self) -> tuple[str | None, _Difference]:
        """(the repository's newest commit, how it differs from the folder)."""
        head = _with_retries(lambda: self._api.repo_info(self._repo, repo_type="dataset")).sha
        there = {
            entry.path: entry
            for entry in _with_retries(
                lambda: list(self._api.list_repo_tree(self._repo, recursive=True, repo_type="dataset", revision=head))
            )
            if hasattr(entry, "size")
        }
        both = [name for name in self._local if name in there]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            same = dict(zip(both, pool.map(lambda n: _same(self._local[n], there[n]), both), strict=True))
        missing = [name for name in self._local if name not in there]
        foreign = [name for name in there if name not in self._local and name != _ALWAYS_THERE]
        return head, _Difference(missing, [name for name in both if not same[name]], sorted(foreign))

    def _refuse(self, found: _Difference, first: bool) -> None:
        """UserError where the repository has other content and may not be changed. Files that only it has are refused
        only at the start, since others may commit meanwhile."""
        if not self._update and (found.changed or (first and found.foreign)):
            said = [f"{len(found.changed):,} other than here ({found.changed[0]}, …)"] if found.changed else []
            said += [f"{len(found.foreign):,} that are not here ({found.foreign[0]}, …)"] if found.foreign else []
            raise UserError(
                f"publish: {self._repo} holds other content: files {' and '.join(said)}. Name another data set, or say "
                "--update: then it becomes what the export is, and its history keeps what it was."
            )

    def _conflict_message(self) -> str:
        commits = _with_retries(lambda: self._api.list_repo_commits(self._repo, repo_type="dataset"))
        others = [c for c in commits if not c.title.startswith(self._title)]
        who = Counter(author for commit in others[:TRIES] for author in commit.authors)
        last = f" (the last: “{others[0].title}”, {others[0].created_at:%Y-%m-%d %H:%M} UTC)" if others else ""
        return (
            f"publish: {self._repo} changes all the while, {TRIES} times by now: {', '.join(who) or 'somebody'} "
            f"commits{last}. Agree with them, then run this again: it goes on with what is missing."
        )


def _files(folder: Path) -> dict[str, Path]:
    """Absolute paths by name in the repository. UserError where a folder has more files than the Hub allows."""
    found = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.absolute().rglob("*")) if path.is_file()
    }
    if link := next((name for name, path in found.items() if path.is_symlink()), ""):
        raise UserError(f"publish: {folder / link} is a link, as exports for Energon have them. Publish --webdataset.")
    [(fullest, count)] = Counter(os.path.dirname(name) for name in found).most_common(1) or [("", 0)]
    if count > MOST_FILES:
        raise UserError(
            f"publish: {folder / fullest} holds {count:,} files, of which the Hub takes {MOST_FILES:,} a folder. "
            "Export with a larger --shard-size, or parts with --where, each in a folder of its own."
        )
    return found


def _same(path: Path, there: Any) -> bool:
    """Whether a local file has the content of an entry of the repository."""
    if path.stat().st_size != there.size:
        return False
    if there.lfs is not None:
        return file_digest(path) == there.lfs.sha256
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == there.blob_id


def _with_retries(ask: Callable[[], T]) -> T:
    """The result of a request, retried where the Hub is busy. The client retries most of its requests, but not all."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(TRIES):
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in _RETRIED:
                raise
            said = error.response.headers.get("Retry-After", "")
        except JSONDecodeError:  # a proxy answered with an HTML page about an error
            said = ""
        time.sleep(min(float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else 2.0**attempt, _LONGEST_WAIT_S))
    return ask()


@contextmanager
def _as_user_errors(repo: str) -> Iterator[None]:
    """Turns errors of the client into a UserError that never contains the token."""
    import httpx2
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if not token:
        raise UserError("publish: no token of the Hub here. Log in with `hf auth login`, or set HF_TOKEN.")
    again = "Run this again: it goes on with what is missing."
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            again = f"Has the token (hf auth whoami) the right to write {repo}?"
        said = f"the Hub answers {status}: {error}"
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        said = f"the Hub cannot be reached or broke off: {type(error).__name__}: {error}"
    except ValueError as error:  # a card that the Hub refuses, a name that is none
        said, again = str(error), "Mend that, then run this again."
    else:
        return
    clean = re.sub(r"hf_\w{8,}", "…", " ".join(said.replace(token, "…").split()))
    raise UserError(f"publish: {clean.rstrip('.')}. {again}")
