"""From patterns to shards: local paths or any fsspec URL.

Folders are listed, files are never probed one by one: 130,000 shards on an object store cost one listing a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from hpc.errors import UserError
from hpc.operator import MissingShards, Shard

LONGEST_ID = 160  # bytes; claims and markers add a suffix, and file names end at 255
ARCHIVES = (".tar", ".tar.gz", ".tgz")
EXPECTED = ("auto", "none", "stats", "parquet")
_WITH_USER = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs")  # the user's name is part of the address
_SECRET = re.compile(
    r"token|secret|passw|credential|signature|access_?key|api_?key|^(sig|se|sp|sv|x-amz-.*|x-goog-.*)$", re.I
)


@dataclass
class DataConfig:
    """Where the samples are, and which members of a sample are what."""

    shards: list[str] = field(
        default_factory=list,
        metadata={
            "help": "tars: paths or URLs with braces {00000..00099} or globs, folders, or lists of these (@file)",
            "execution": True,
        },
    )
    root: str | None = field(
        default=None,
        metadata={
            "help": "folder that shard ids are relative to (default: what the patterns have in common); "
            "name it where a later launch may add folders",
            "execution": True,
        },
    )
    expected: str = field(
        default="auto",
        metadata={
            "help": "where the number of samples of a shard is known from: stats (img2dataset's X_stats.json) | "
            "parquet (its X.parquet) | none | auto (either on local disks, none on remote stores: a request a shard)",
            "execution": True,
        },
    )
    image: list[str] = field(
        default_factory=lambda: ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"],
        metadata={"help": "extensions that hold the image, the first found counts"},
    )
    text: str = field(
        default="txt",
        metadata={"help": "extension that holds the original text, or a key inside a JSON member: json.caption"},
    )
    placeholders: list[str] = field(
        default_factory=list,
        metadata={
            "help": "sha256 of image files that stand for dead links, or @file with one a line; they are skipped",
            "execution": True,  # the digests themselves enter the identity, not the path of their list
        },
    )

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder. Credentials are for planning, not kept."""
        self.given: list[str] = [absolute(pattern) for pattern in self.shards]
        self.shards = [without_credentials(pattern) for pattern in self.given]
        self.placeholders = [absolute(p) if p.startswith("@") else p for p in self.placeholders]
        self._planned: list[Shard] = []  # by a run that exists
        if self.expected not in EXPECTED:
            raise UserError(f"config: `data.expected`: {self.expected!r} is unknown. Write {', '.join(EXPECTED)}.")

    def keep_root(self, planned: Iterable[Shard]) -> None:
        """Name shards relative to the root of a run that exists, so that none of its ids change."""
        self._planned = list(planned)

    def root_for(self, patterns: list[str], files: Iterable[_File]) -> str:
        """What ids are relative to: the root that is named, that of the run, or what the patterns have in common.

        A run's root is kept, but where its data moved as a whole: nothing lies beneath the root, and most of the run's
        shards are found, with the sizes and versions that they had, by the names that they have from the new one.
        """
        if self.root:
            return without_credentials(self.root)
        new = without_credentials(_common_root(patterns))
        if not self._planned:
            return new
        kept, found = root_of(self._planned), list(files)
        if any(without_credentials(f.uri).startswith(f"{kept}/") for f in found):
            return kept
        named = {_shard_id(f.uri, new): (f.size, f.etag) for f in found}
        same = sum(named.get(shard.id) == (shard.bytes, shard.etag) for shard in self._planned)
        return new if 2 * same > len(self._planned) else kept


def absolute(pattern: str) -> str:
    """A pattern that means the same from any working directory."""
    if "://" in pattern:
        return pattern
    at, path = ("@", pattern[1:]) if pattern.startswith("@") else ("", pattern)
    return at + os.path.abspath(path)


def without_credentials(url: str) -> str:
    """A URL without password, token or signature: what may be written into a run directory.

    >>> without_credentials("s3://KEY:SECRET@bucket/0.tar"), without_credentials("https://h/0.tar?sig=x&v=1")
    ('s3://bucket/0.tar', 'https://h/0.tar?v=1')
    """
    if "://" not in url:
        return url
    head, _, tail = url.rpartition("::")  # chained filesystems: simplecache::https://...
    parts = urlsplit(tail.replace("#", "%23"))  # a key may hold '#'
    user, _, host = parts.netloc.rpartition("@")
    if user and parts.scheme in _WITH_USER:
        host = f"{user.partition(':')[0]}@{host}"
    query = "&".join(p for p in parts.query.split("&") if not _SECRET.search(p.partition("=")[0]))
    clean = urlunsplit((parts.scheme, host, parts.path, query, "")).replace("%23", "#")
    return f"{head}::{clean}" if head else clean


def placeholder_digests(config: DataConfig) -> frozenset[str]:
    """The sha256 of images that are not to be captioned. UserError for what is not a sha256."""
    digests = set()
    for entry in (e for given in config.placeholders for e in _from_list(given)):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", entry):
            raise UserError(f"config: `data.placeholders`: {entry[:80]!r} is not a sha256 (64 hex digits).")
        digests.add(entry.lower())
    return frozenset(digests)


# --- shards -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    uri: str
    size: int
    etag: str = ""


@dataclass(frozen=True)
class _Folder:
    """What one listing said, by base name."""

    files: dict[str, _File]
    folders: list[str]
    exists: bool = True


def list_shards(config: DataConfig) -> list[Shard]:
    """The shards that a config names, in the order of their names.

    Raises:
        MissingShards: some do not exist.
        UserError: nothing is named, nothing matches, or a pattern is malformed.
    """
    if not config.given:
        raise UserError("config: `data.shards`: empty. Name tars, e.g. data.shards=[/data/{00000..00099}.tar].")
    listings: dict[str, _Folder] = {}
    found: dict[str, _File] = {}
    missing: dict[str, None] = {}
    patterns = [p for pattern in config.given for p in _from_list(pattern)]
    for pattern in patterns:
        for name in _expand(pattern):
            files = _match(name, listings)
            found.update((f.uri, f) for f in files)
            if not files:
                missing[name] = None
    counts = _expected(config.expected, found, listings)
    root = config.root_for(patterns, [*found.values(), *(_File(name, 0) for name in missing)])
    shards = [
        Shard(_shard_id(f.uri, root), without_credentials(f.uri), f.size, f.etag, counts.get(f.uri))
        for f in sorted(found.values(), key=lambda f: f.uri)
    ]
    _check_unique(shards)
    if missing:
        lost = [Shard(_shard_id(n, root), without_credentials(n), 0, MissingShards.ETAG) for n in sorted(missing)]
        raise MissingShards(", ".join(config.shards), shards, lost)
    return shards


def _check_unique(shards: list[Shard]) -> None:
    seen: dict[str, Shard] = {}
    for shard in shards:
        if (other := seen.setdefault(shard.id, shard)) is not shard:
            raise UserError(
                f"plan: {other.uri} and {shard.uri} would both be shard {shard.id}. Name each file once, or set "
                "data.root to a folder that holds both."
            )


def _from_list(pattern: str) -> list[str]:
    """`@file` stands for the entries of a text file, one a line, paths relative to it; # starts a comment."""
    if not pattern.startswith("@"):
        return [pattern]
    try:
        with fsspec.open(pattern[1:], "r", encoding="utf-8") as file:
            lines = [line.strip() for line in file.read().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config: {without_credentials(pattern)}: this list cannot be read ({error}).") from error
    folder = pattern[1:].rpartition("/")[0]
    entries = [line for line in lines if line and not line.startswith("#")]
    relative = re.compile(r"(?!/|[\w+.:-]+://|[0-9a-fA-F]{64}$)")
    return [f"{folder}/{entry}" if relative.match(entry) else entry for entry in entries]


def _expand(pattern: str) -> Iterable[str]:
    try:
        return braceexpand(pattern)
    except UnbalancedBracesError as error:
        raise UserError(f"config: `data.shards`: {without_credentials(pattern)}: braces do not match.") from error


def _match(name: str, listings: dict[str, _Folder]) -> list[_File]:
    """The files that one brace-free pattern names: a file, a glob, or a folder's tars. [] if a tar does not exist."""
    if name.startswith(("http://", "https://")) and urlsplit(name).path.endswith(ARCHIVES):
        return [_File(name, 0)]  # servers need not list, and asking for each would be a request a shard
    folder, _, last = name.rstrip("/").rpartition("/")
    folder = folder or "/"
    if _is_glob(name):
        files = [
            f
            for parent in _folders(folder, listings)
            for base, f in _list(parent, listings).files.items()
            if fnmatchcase(base, last) and (base.endswith(ARCHIVES) or last.endswith(ARCHIVES))
        ]
        if not files:
            raise UserError(f"plan: {without_credentials(name)}: no tar matches. Correct data.shards.")
        return files
    if name.endswith(ARCHIVES):
        exact = _list(folder, listings).files.get(last)
        return [exact] if exact else []
    inside = _list(name.rstrip("/"), listings)
    files = [f for base, f in inside.files.items() if base.endswith(ARCHIVES)]
    if not files:
        what = "holds no .tar, .tar.gz or .tgz" if inside.exists else "is no folder, and no .tar, .tar.gz or .tgz"
        more = f" itself; its folders may: {without_credentials(name).rstrip('/')}/*/*.tar" if inside.folders else ""
        raise UserError(f"plan: {without_credentials(name)} {what}{more}. Correct data.shards.")
    return files


def _is_glob(name: str) -> bool:
    return re.search(r"[*?\[]", name) is not None


def _folders(pattern: str, listings: dict[str, _Folder]) -> list[str]:
    """The folders that a pattern with wildcards in any part names."""
    if not _is_glob(pattern):
        return [pattern]
    parent, _, last = pattern.rpartition("/")
    return [
        f"{found}/{base}"
        for found in _folders(parent or "/", listings)
        for base in _list(found, listings).folders
        if fnmatchcase(base, last)
    ]


def _list(folder: str, listings: dict[str, _Folder]) -> _Folder:
    """A folder's listing, asked for once."""
    if folder not in listings:
        try:
            listings[folder] = _list_remote(folder) if "://" in folder else _list_local(folder)
        except (FileNotFoundError, NotADirectoryError):
            listings[folder] = _Folder({}, [], exists=False)
        except (OSError, ImportError, ValueError) as error:
            raise UserError(
                f"plan: {without_credentials(folder)} cannot be listed ({type(error).__name__}: {str(error)[:200]}). "
                "Credentials come from the environment or from fsspec's own configuration."
            ) from error
    return listings[folder]


def _list_local(folder: str) -> _Folder:
    files, folders = {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    facts = entry.stat()
                    uri = os.path.join(folder, entry.name)
                    files[entry.name] = _File(uri, facts.st_size, str(facts.st_mtime))
                elif entry.is_dir():
                    folders.append(entry.name)
            except FileNotFoundError:
                continue  # a dangling link, or gone since the listing
    return _Folder(files, sorted(folders))


def _list_remote(folder: str) -> _Folder:
    system, path = fsspec.core.url_to_fs(folder)
    files, folders = {}, []
    for entry in system.ls(path, detail=True):
        base = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "file":
            etag = str(entry.get("ETag") or entry.get("etag") or entry.get("mtime") or entry.get("LastModified") or "")
            files[base] = _File(f"{folder.rstrip('/')}/{base}", int(entry.get("size") or 0), etag.strip('"'))
        else:
            folders.append(base)
    return _Folder(files, sorted(folders))


def _common_root(patterns: list[str]) -> str:
    """The folder that all patterns share, from their constant beginnings: it stays when a brace range grows."""
    folders = []
    for pattern in patterns:
        constant = re.split(r"[{*?\[]", pattern)[0]
        is_file = constant != pattern or pattern.endswith(ARCHIVES)
        folder = constant.rpartition("/")[0] if is_file else constant.rstrip("/")
        folders.append(folder)
    parts = [f.split("/") for f in folders]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def root_of(planned: Iterable[Shard]) -> str:
    """The root that a plan's ids are relative to; "" where all of them are whole paths."""
    for shard in planned:
        uri = shard.uri.partition("?")[0] if "://" in shard.uri else shard.uri
        if shard.id == _shard_id(uri, ""):
            continue  # it lies outside the root
        folder = uri
        while folder := folder.rpartition("/")[0]:
            if _shard_id(uri, folder) == shard.id:
                return folder
    return ""


def _shard_id(uri: str, root: str) -> str:
    """Path relative to the root, without .tar, escaped to be one file name. Moving the data changes nothing."""
    uri = without_credentials(uri).partition("?")[0] if "://" in uri else uri
    base = root.rstrip("/") + "/"
    name = quote(uri.removeprefix(base).lstrip("/").removesuffix(".tar"), safe="=+@,")
    if len(name) > LONGEST_ID:
        name = name[: LONGEST_ID - 17] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


# --- expected samples -------------------------------------------------------------------------


def _expected(how: str, found: dict[str, _File], listings: dict[str, _Folder]) -> dict[str, int]:
    """Number of samples by uri, where img2dataset's files beside a shard say it. The listings tell which exist."""
    known = {f.uri: f for listing in listings.values() for f in listing.files.values()}
    stats: dict[str, str] = {}
    tables: dict[str, str] = {}
    for uri in found:
        if how == "none" or (how == "auto" and "://" in uri):
            continue
        stem = next(uri.removesuffix(a) for a in ARCHIVES[::-1] if uri.endswith(a))
        if how in ("auto", "stats") and f"{stem}_stats.json" in known:
            stats[f"{stem}_stats.json"] = uri
        elif how in ("auto", "parquet") and f"{stem}.parquet" in known:
            tables[f"{stem}.parquet"] = uri
    counts: dict[str, int] = {}
    for files, parse in ((stats, _successes), (tables, _rows)):
        for path, content in _contents(list(files)):
            count = parse(content)
            if count is not None:
                counts[files[path]] = count
    return counts


def _contents(paths: list[str]) -> Iterable[tuple[str, bytes]]:
    """The bytes of many small files; remote ones are asked for together. What cannot be read is left out."""
    for path in (p for p in paths if "://" not in p):
        try:
            yield path, Path(path).read_bytes()
        except OSError:
            continue
    remote = [p for p in paths if "://" in p]
    for start in range(0, len(remote), 1000):
        part = remote[start : start + 1000]
        system, _ = fsspec.core.url_to_fs(part[0])
        stripped = {system._strip_protocol(p): p for p in part}
        answers: dict[str, Any] = system.cat(list(stripped), on_error="omit")
        yield from ((stripped[name], content) for name, content in answers.items())


def _successes(data: bytes) -> int | None:
    """img2dataset writes its statistics without care for crashes: half a file is no statement."""
    try:
        count = json.loads(data)["successes"]
    except (ValueError, KeyError, TypeError):
        return None
    return int(count) if isinstance(count, int) and count >= 0 else None


def _rows(data: bytes) -> int | None:
    try:
        status = pq.read_table(pa.BufferReader(data), columns=["status"])["status"]
        return int(pc.sum(pc.equal(status, "success")).as_py() or 0)
    except (OSError, pa.ArrowException, KeyError):
        return None
