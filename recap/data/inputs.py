"""From patterns to shards: local paths or any fsspec URL.

Folders are listed, files are never probed one by one, so that 130,000 shards on an object store cost one listing of each folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

import fsspec
from braceexpand import braceexpand

from hpc.errors import UserError
from hpc.operator import Shard

LONGEST_ID = 160  # bytes; claims and markers add a suffix, and file names end at 255


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
            "help": "folder that shard ids are relative to (default: what the patterns have in common)",
            "execution": True,
        },
    )
    image: list[str] = field(
        default_factory=lambda: ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"],
        metadata={"help": "extensions that hold the image, the first found counts"},
    )
    text: str = field(default="txt", metadata={"help": "extension that holds the original text"})


@dataclass(frozen=True)
class _File:
    uri: str
    size: int
    etag: str


def absolute(pattern: str) -> str:
    """A pattern that means the same from any working directory."""
    if "://" in pattern:
        return pattern
    at, path = ("@", pattern[1:]) if pattern.startswith("@") else ("", pattern)
    return at + os.path.abspath(path)


def list_shards(config: DataConfig) -> list[Shard]:
    """The shards that a config names, in the order of their names.

    Raises:
        UserError: nothing is named, something does not exist, or a pattern is malformed.
    """
    if not config.shards:
        raise UserError("config: `data.shards`: empty. Name tars, e.g. data.shards=[/data/{00000..00099}.tar].")
    patterns = [p for pattern in config.shards for p in _from_list(pattern)]
    listings: dict[str, dict[str, _File]] = {}
    found: dict[str, _File] = {}
    missing: list[str] = []
    for pattern in patterns:
        for name in _expand(pattern):
            files = _match(name, listings)
            found.update((f.uri, f) for f in files)
            if not files:
                missing.append(name)
    if missing:
        raise UserError(
            f"plan: {', '.join(config.shards)}: {len(missing):,} of {len(found) + len(missing):,} shards do not exist "
            f"(first: {missing[0]}). Correct data.shards. Nothing was submitted."
        )
    root = config.root or _common_root(patterns)
    return [Shard(_shard_id(f.uri, root), f.uri, f.size, f.etag) for f in sorted(found.values(), key=lambda f: f.uri)]


def _from_list(pattern: str) -> list[str]:
    """`@file` stands for the patterns in a text file, one a line; # starts a comment."""
    if not pattern.startswith("@"):
        return [pattern]
    try:
        lines = Path(pattern[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"config: `data.shards`: {pattern}: cannot be read ({error.strerror}).") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _expand(pattern: str) -> Iterable[str]:
    try:
        return braceexpand(pattern)
    except ValueError as error:
        raise UserError(f"config: `data.shards`: {pattern}: braces do not match.") from error


def _match(name: str, listings: dict[str, dict[str, _File]]) -> list[_File]:
    """The files that one brace-free pattern names: a file, a glob in the last part, or a folder's tars."""
    folder, _, last = name.rstrip("/").rpartition("/")
    folder = folder or ("/" if name.startswith("/") else ".")
    if re.search(r"[*?\[]", folder):
        raise UserError(f"config: `data.shards`: {name}: wildcards may stand in the last part only. Name the folders.")
    if re.search(r"[*?\[]", last):
        return [f for base, f in _list(folder, listings).items() if fnmatchcase(base, last)]
    exact = _list(folder, listings).get(last)
    if exact:
        return [exact]
    if name.endswith((".tar", ".gz", ".tgz")):
        return []
    return [f for base, f in _list(name.rstrip("/"), listings).items() if base.endswith(".tar")]


def _list(folder: str, listings: dict[str, dict[str, _File]]) -> dict[str, _File]:
    """The files of a folder by base name, listed once."""
    if folder not in listings:
        system, path = fsspec.core.url_to_fs(folder)
        prefix = folder.split("://")[0] + "://" if "://" in folder else ""
        try:
            entries = system.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            entries = []
        listings[folder] = {
            entry["name"].rstrip("/").rpartition("/")[2]: _file(prefix, entry)
            for entry in entries
            if entry["type"] == "file"
        }
    return listings[folder]


def _file(prefix: str, entry: dict) -> _File:
    """Local files: the modification time stands for the version; object stores give an ETag."""
    etag = entry.get("ETag") or entry.get("etag") or entry.get("mtime") or ""
    uri = prefix + entry["name"] if prefix else str(Path(entry["name"]).absolute())
    return _File(uri, int(entry.get("size") or 0), str(etag).strip('"'))


def _common_root(patterns: list[str]) -> str:
    """The folder that all patterns share, from their constant beginnings: it stays when a brace range grows."""
    folders = []
    for pattern in patterns:
        constant = re.split(r"[{*?\[]", pattern)[0]
        folder = constant.rpartition("/")[0] if constant != pattern or pattern.endswith(".tar") else constant.rstrip("/")
        folders.append(folder if "://" in folder else str(Path(folder or ".").absolute()))
    parts = [f.split("/") for f in folders]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def _shard_id(uri: str, root: str) -> str:
    """Path relative to the root, without .tar, escaped to be one file name. Moving the data changes nothing."""
    root = root if "://" in root else str(Path(root).absolute())
    relative = uri.removeprefix(root).lstrip("/") if uri.startswith(root.rstrip("/") + "/") else uri.lstrip("/")
    name = quote(relative.removesuffix(".tar"), safe="=+@,")
    if len(name) > LONGEST_ID:
        name = name[: LONGEST_ID - 17] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name
