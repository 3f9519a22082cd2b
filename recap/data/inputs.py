"""From patterns to shards: local paths or any fsspec URL.

Folders are listed, files are never probed one by one: 130,000 shards on an object store cost one listing a folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import quote, urlsplit, urlunsplit

import fsspec

from hpc.errors import UserError
from hpc.operator import MissingShards, Shard
from recap.data.expected import ARCHIVES, expected_samples

LONGEST_ID = 160  # bytes; claims and markers add a suffix, and file names end at 255
EXPECTED = ("auto", "none", "stats", "parquet")
_WITH_USER = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs")  # the user's name is part of the address
_SECRET = re.compile(
    r"token|secret|passw|credential|signature|hmac|jwt|access_?key|api_?key|^(auth|sig|se|sp|sv|x-amz-.*|x-goog-.*)$",
    re.I,
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
        self.planned: list[Shard] = []  # by a run that exists
        if self.expected not in EXPECTED:
            raise UserError(f"config: `data.expected`: {self.expected!r} is unknown. Write {', '.join(EXPECTED)}.")

    def keep_root(self, planned: Iterable[Shard]) -> None:
        """Name shards relative to the root of a run that exists, so that none of its ids change."""
        self.planned = list(planned)

    def root_for(self, new: str, files: Iterable[_File]) -> str:
        """What ids are relative to: the root that is named, that of the run, or the patterns' own (new).

        A run's root is kept, but where its data moved as a whole: nothing lies beneath the root, and most of the run's
        shards are found, with the sizes and versions that they had, by the names that they have from the new one.
        """
        if self.root:
            return without_credentials(self.root)
        if not self.planned:
            return new
        kept, found = root_of(self.planned), list(files)
        if any(without_credentials(f.uri).startswith(f"{kept}/") for f in found):
            return kept
        named = {_shard_id(_without_query(f.uri), new): (f.size, f.etag) for f in found}
        same = sum(named.get(shard.id) == (shard.bytes, shard.etag) for shard in self.planned)
        return new if 2 * same > len(self.planned) else kept


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


def _refuse_secrets(url: str) -> None:
    """UserError for a URL that answers only with the secret in it: what is kept, and asked for, is the bare URL.

    Store URLs such as s3://KEY:SECRET@bucket are listed with theirs, and read with the environment's.
    """
    clean = without_credentials(url)
    parts, bare = urlsplit(url.rpartition("::")[2]), urlsplit(clean.rpartition("::")[2])
    if parts.query != bare.query:
        what = "a signature or token in its query (a presigned URL)"
    elif parts.netloc != bare.netloc and parts.scheme in ("http", "https"):
        what = "a user or password"
    else:
        return
    raise UserError(
        f"plan: {clean} was given with {what}, which expires and is never written into a run. Name the object itself, "
        "with credentials from the environment (s3://, gs://, az://), put headers for web servers into fsspec's "
        "configuration, or copy the tars to a disk."
    )


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
        _refuse_secrets(pattern)
        for name in _expand(pattern):
            files = _match(name, listings)
            found.update((f.uri, f) for f in files)
            if not files:
                missing[name] = None
    known = {file.uri for listing in listings.values() for file in listing.files.values()}
    counts = expected_samples(config.expected, found, known)
    common = without_credentials(_common_root(patterns, listings))
    root = config.root_for(common, [*found.values(), *(_File(name, 0) for name in missing)])
    ids = _shard_ids([*found, *missing], root, config.planned)
    shards = [
        Shard(ids[f.uri], without_credentials(f.uri), f.size, f.etag, counts.get(f.uri))
        for f in sorted(found.values(), key=lambda f: f.uri)
    ]
    _check_unique(shards)
    if missing:
        lost = [Shard(ids[n], without_credentials(n), 0, MissingShards.ETAG) for n in sorted(missing)]
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
    if "://" not in pattern and os.path.lexists(pattern):
        return [pattern]  # braces may be part of a name
    # Here, so that a machine with torch and transformers alone can run the benchmarks of training steps.
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        return braceexpand(pattern)
    except UnbalancedBracesError as error:
        raise UserError(f"config: `data.shards`: {without_credentials(pattern)}: braces do not match.") from error


def _match(name: str, listings: dict[str, _Folder]) -> list[_File]:
    """The files that one brace-free pattern names: a file, a glob, or a folder's tars. [] if a tar does not exist."""
    if _is_web_file(name):
        return [_File(name, 0)]  # servers need not list, and asking for each would be a request a shard
    folder, _, last = name.rstrip("/").rpartition("/")
    folder = folder or "/"
    if _is_glob(name) and not _is_there(name, listings):
        files = [
            f
            for parent in _folders(folder, listings)
            for base, f in _list(parent, listings).files.items()
            if _fits(base, last) and (base.endswith(ARCHIVES) or last.endswith(ARCHIVES))
        ]
        if not files:
            folders = f" It matches folders; their tars: {without_credentials(name).rstrip('/')}/*.tar."
            more = folders if _folders(name.rstrip("/"), listings) else ""
            raise UserError(f"plan: {without_credentials(name)}: no tar matches.{more} Correct data.shards.")
        return files
    if name.endswith(ARCHIVES):
        exact = _list(folder, listings).files.get(last)
        return [exact] if exact else []
    inside = _list(name.rstrip("/"), listings)
    files = [f for base, f in inside.files.items() if base.endswith(ARCHIVES) and not base.startswith(".")]
    if not files:
        what = "holds no .tar, .tar.gz or .tgz" if inside.exists else "is no folder, and no .tar, .tar.gz or .tgz"
        more = f" itself; its folders may: {without_credentials(name).rstrip('/')}/*/*.tar" if inside.folders else ""
        raise UserError(f"plan: {without_credentials(name)} {what}{more}. Correct data.shards.")
    return files


def _is_web_file(name: str) -> bool:
    if not name.startswith(("http://", "https://")):
        return False
    parts = urlsplit(name)
    return parts.path.endswith(ARCHIVES) or "=" in parts.query


def _is_glob(name: str) -> bool:
    return re.search(r"[*?\[]", name) is not None


def _is_there(name: str, listings: dict[str, _Folder]) -> bool:
    """Whether what looks like wildcards are letters of names that exist: a folder may be called `set [v2]`."""
    parts = name.rstrip("/").split("/")
    return all(
        _has("/".join(parts[:at]) or "/", part, listings) for at, part in enumerate(parts) if at and _is_glob(part)
    )


def _has(folder: str, base: str, listings: dict[str, _Folder]) -> bool:
    listing = _list(folder, listings)
    return base in listing.files or base in listing.folders


def _fits(base: str, pattern: str) -> bool:
    """As in a shell, wildcards do not find hidden files (macOS leaves `._00000.tar` beside `00000.tar`)."""
    return fnmatchcase(base, pattern) and (not base.startswith(".") or pattern.startswith("."))


def _folders(pattern: str, listings: dict[str, _Folder]) -> list[str]:
    """The folders that a pattern with wildcards in any part names."""
    if not _is_glob(pattern):
        return [pattern]
    parent, _, last = pattern.rpartition("/")
    parents = _folders(parent or "/", listings)
    return [
        f"{found}/{base}"
        for found in parents
        for base in _list(found, listings).folders
        if base == last or (_fits(base, last) and last not in _list(found, listings).folders)
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
                    uri = os.path.join(folder, entry.name)
                    if entry.name.endswith(ARCHIVES):
                        facts = entry.stat()
                        files[entry.name] = _File(uri, facts.st_size, str(facts.st_mtime))
                    else:  # statistics and the like: that they are there is all that is asked
                        files[entry.name] = _File(uri, 0)
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


def _common_root(patterns: list[str], listings: dict[str, _Folder]) -> str:
    """The folder that all patterns share, from their constant beginnings: it stays when a brace range grows."""
    parts = [_constant_folder(pattern, listings) for pattern in patterns]
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


def _constant_folder(pattern: str, listings: dict[str, _Folder]) -> list[str]:
    """The parts of a pattern's path before its first brace or wildcard, without a file's name."""
    web = _is_web_file(pattern)
    path = pattern.partition("?")[0] if web else pattern.rstrip("/")
    parts = path.split("/")
    for at, part in enumerate(parts):
        if re.search(r"[{*?\[]", part) and (web or not _is_literal(parts[: at + 1], listings)):
            return parts[:at]
    return parts[:-1] if web or path.endswith(ARCHIVES) else parts


def _is_literal(parts: list[str], listings: dict[str, _Folder]) -> bool:
    """Whether a path whose last part has braces or wildcards exists as it is spelled."""
    path = "/".join(parts)
    if "://" not in path:
        return os.path.lexists(path)
    return "{" not in parts[-1] and _has("/".join(parts[:-1]), parts[-1], listings)


def _shard_ids(uris: Iterable[str], root: str, planned: Iterable[Shard]) -> dict[str, str]:
    """An id for each uri. Only those that their query alone tells apart have it in their id; none planned changes."""
    kept = {shard.uri: shard.id for shard in planned if "?" in shard.uri}
    ids = {uri: _shard_id(_without_query(uri), root) for uri in uris}
    often = Counter(ids.values())
    for uri, name in ids.items():
        clean = without_credentials(uri)
        if _without_query(uri) != uri and often[name] > 1:
            ids[uri] = kept.get(clean) or _shard_id(clean, root)
    return ids


def _without_query(uri: str) -> str:
    return without_credentials(uri).partition("?")[0] if "://" in uri else uri


def _shard_id(uri: str, root: str) -> str:
    """Path relative to the root, without .tar, escaped to be one file name. Moving the data changes nothing."""
    base = root.rstrip("/") + "/"
    name = quote(uri.removeprefix(base).lstrip("/").removesuffix(".tar"), safe="=+@,")
    if len(name) > LONGEST_ID:
        name = name[: LONGEST_ID - 17] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name
