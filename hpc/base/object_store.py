"""Published files on an object store (`output: s3://bucket/prefix`), for sites whose file system should not hold them.

A key is written once: by a conditional put (If-None-Match: *), or, where the store does not know that or holds
something else under the key, under a unique one, which the marker names. What was written is read back and compared
before any marker speaks for it. Credentials come from the environment, never from the config.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system, retry

TRIES = 6
_FINAL = (FileExistsError, FileNotFoundError, PermissionError, NotImplementedError, ValueError)


class Unavailable(OSError):
    """The store does not answer: no shard is to blame."""


def is_url(location: str) -> bool:
    return "://" in location


def check(url: str) -> None:
    """Raise UserError where `url` names no object store, or one whose client is not installed. Asks no network."""
    advice = "Expected the URL of an object store, such as s3://bucket/prefix; without `output` files lie in the run."
    if not is_url(url):
        raise UserError(f"config: `output`: {url!r} is no URL. {advice} (`runs=` says where runs lie.)")
    try:
        system, path = file_system(url)
    except (ValueError, ImportError) as error:
        raise UserError(f"config: `output`: {url!r}: {error}. {advice}") from error
    if "file" in system.protocol or not path.strip("/"):
        raise UserError(f"config: `output`: {url!r} names no object store with a bucket. {advice}")


def problem(url: str, name: str) -> str:
    """Why an object named `name` cannot be written and read back under `url`; "" where it can, or where the
    store does not answer. It is removed again."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe"
            probe.write_bytes(b"may this be written?")
            stored = put(probe, f"{url.rstrip('/')}/{name}")
        system, path = file_system(stored)
    except Unavailable:
        return ""  # no node is to blame, and it may be back when the first shard is done
    except Exception as error:  # noqa: BLE001 - each store's client has exceptions of its own
        return f"output: {url} cannot be written from this node: {type(error).__name__}: {error}"
    with suppress(Exception):  # who may write may still not be allowed to delete
        system.rm_file(path)
    return ""


def put(source: Path, url: str) -> str:
    """Publish a local file under `url`, or, where that is taken, under a unique key beside it. Returns the URL that
    holds it; the object was read back and compared.

    Raises:
        OSError: the store does not take it, after all tries.
    """
    system, path = file_system(url)
    wanted = hashlib.sha256(source.read_bytes()).digest()

    def stored(at: str) -> bool:
        return hashlib.sha256(system.cat_file(at)).digest() == wanted

    try:
        _retry(lambda: _put_new(system, source, path), url)
    except (FileExistsError, NotImplementedError, ValueError):
        # Another owner's bytes, our own from a put whose reply was lost, or a store without conditional puts.
        if not (system.exists(path) and _retry(lambda: stored(path), url)):
            stem, dot, suffix = path.rpartition(".")
            path = f"{stem}.{uuid.uuid4().hex[:12]}{dot}{suffix}"
            _retry(lambda: system.put_file(str(source), path), url)
    if not _retry(lambda: stored(path), url):
        raise OSError(f"{url}: what was read back is not what was written")
    return system.unstrip_protocol(path)


def _put_new(system: Any, source: Path, path: str) -> None:
    try:
        system.put_file(str(source), path, mode="create")
    except OSError as error:
        if "PreconditionFailed" in str(error) or "At least one of the pre-conditions" in str(error):
            raise FileExistsError(path) from error
        raise


@contextmanager
def fetched(location: str) -> Iterator[Path]:
    """What a marker's `file` names, as a local path: that file itself, or a copy of the object that is there inside the
    `with` block.
    """
    if not is_url(location):
        yield Path(location)
        return
    system, path = file_system(location)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.rpartition("/")[2]
        copy.write_bytes(_retry(lambda: system.cat_file(path), location))
        yield copy


def _retry(call: Callable[[], Any], url: str) -> Any:
    """The result of a request. Raises Unavailable where the store does not answer."""
    try:
        return retry(call, url, TRIES, lambda error: isinstance(error, _FINAL))
    except _FINAL:
        raise
    except Exception as error:
        raise Unavailable(f"{url}: {TRIES} tries, last: {error}") from error
