"""From the patterns in a config to the list of shards: local paths or any fsspec URL.

Folders are listed, files are never probed one by one: 130,000 shards on an object store cost one listing a folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import MissingShards, Shard
from recap.data.addresses import _refuse_secrets, absolute, without_credentials
from recap.data.file_list import ENDING
from recap.data.frozen import Frozen, folder_of, freeze
from recap.data.hub import Pins
from recap.data.kind import Wanted
from recap.data.kinds import ENDINGS, described, expected_samples
from recap.data.shard_files import Folder, ShardFile, expand, has_file, is_image_folder, is_web_file, match, read_list

LONGEST_ID = 160  # bytes; claims and markers add a suffix, and file names end at 255
ID_ENDINGS = (".tar", ".parquet", ".arrow", ENDING)  # endings of files' names that shard ids leave out
EXPECTED = ("auto", "none", "stats", "parquet")


@dataclass
class DataConfig:
    """Where the samples are, and which members of a sample are what."""

    shards: list[str] = execution(
        [],
        "tars, parquet and arrow files, folders of images: paths or URLs (hf:// too) with braces {00000..00099} or "
        "globs, folders of such files, or lists (@file)",
    )
    root: str | None = execution(
        None,
        "folder that shard ids are relative to (default: what the patterns have in common); "
        "name it where a later launch may add folders",
    )
    expected: str = execution(
        "auto",
        "where the number of samples of a shard is known from: stats (img2dataset's X_stats.json) | "
        "parquet (its X.parquet, or a parquet file's own footer) | none | "
        "auto (either on local disks, none on remote stores: a request a shard)",
    )
    image: list[str] = semantic(
        ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"],
        "extensions (of tables: columns) that hold the image, the first found counts",
    )
    text: str = semantic(
        "txt", "extension or column that holds the original text, or a key inside a JSON member: json.caption"
    )
    key: str = semantic(
        "", "of tables, of a folder's metadata: column that names the samples; empty: their number, or the file's name"
    )
    files_per_shard: int = execution(1000, "images of a folder that are a shard, at most")
    placeholders: list[str] = execution(
        [], "sha256 of image files that stand for dead links, or @file with one a line; they are skipped"
    )

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder. Credentials are used for planning, not
        kept."""
        self.given: list[str] = [absolute(pattern) for pattern in self.shards]
        self.shards = [without_credentials(pattern) for pattern in self.given]
        self.placeholders = [absolute(p) if p.startswith("@") else p for p in self.placeholders]
        self.planned: list[Shard] = []  # the shards of a run that exists already
        self.lists: Path | None = None  # directory of the lists of image folders; None: folders cannot be read
        self.frozen = Frozen()  # set by list_shards
        self.pins = Pins([])  # set by list_shards
        self.noted: dict[str, dict[str, Any]] = {}  # of the shard that was read last: `hpc.operator`, `noted`
        if self.files_per_shard < 1:
            raise UserError(f"config: `data.files_per_shard`: {self.files_per_shard} is less than 1.")
        if self.expected not in EXPECTED:
            raise UserError(f"config: `data.expected`: {self.expected!r} is unknown. Write {', '.join(EXPECTED)}.")

    def wanted(self, members: Iterable[str] | None = (), image: bool = True) -> Wanted:
        """What to read of each sample: its image where `image` is true, and these members (None: all)."""
        return Wanted(tuple(self.image) if image else (), self.key, None if members is None else frozenset(members))

    def described(self, shards: Sequence[Shard], wanted: Wanted) -> str:
        """What a dry run says of the input, in words. UserError where it cannot be read as wanted."""
        return "; ".join([described(shards, wanted), *self.pins.notes, *self.frozen.notes])

    def keep_root(self, planned: Iterable[Shard]) -> None:
        """Keep the shards of a run that exists, so that `list_shards` gives them the ids that they have there."""
        self.planned = list(planned)

    def root_for(self, new: str, files: Iterable[ShardFile]) -> str:
        """The folder that shard ids are relative to: `data.root`, or the run's, or `new`, the patterns' common folder.

        A run's root is kept unless its data moved as a whole: none of the files lies beneath it, and most of the run's
        shards are found relative to the new root, with the same size and version.
        """
        if self.root:
            return without_credentials(self.root)
        if not self.planned:
            return new
        kept, found = root_of(s for s in self.planned if s.uri.rpartition("/")[0] != str(self.lists)), list(files)
        if any(without_credentials(f.uri).startswith(f"{kept}/") for f in found):
            return kept
        named = {_shard_id(_without_query(f.uri), new): (f.size, f.etag) for f in found}
        same = sum(named.get(shard.id) == (shard.bytes, shard.etag) for shard in self.planned)
        return new if 2 * same > len(self.planned) else kept


def placeholder_digests(config: DataConfig) -> frozenset[str]:
    """The sha256 of images that are skipped (`data.placeholders`). UserError for what is not a sha256."""
    digests = set()
    for entry in (e for given in config.placeholders for e in read_list(given)):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", entry):
            raise UserError(f"config: `data.placeholders`: {entry[:80]!r} is not a sha256 (64 hex digits).")
        digests.add(entry.lower())
    return frozenset(digests)


# --- shards -----------------------------------------------------------------------------------


def list_shards(config: DataConfig) -> list[Shard]:
    """The shards that a config names, in the order of their names.

    Raises:
        MissingShards: some do not exist.
        UserError: nothing is named, nothing matches, or a pattern is malformed.
    """
    if not config.given:
        raise UserError(
            "config: `data.shards`: empty. Name tars or parquet files, e.g. data.shards=[/data/{00000..00099}.tar]."
        )
    listings: dict[str, Folder] = {}
    found: dict[str, ShardFile] = {}
    missing: dict[str, None] = {}
    patterns, folders = dict[str, None](), list[str]()
    given = [p for pattern in config.given for p in read_list(pattern)]
    config.pins = Pins(_places(config.planned) if any(p.startswith("hf://") for p in given) else [])
    for pattern in map(config.pins.pinned, given):
        _refuse_secrets(pattern)
        for name in expand(pattern):
            if is_image_folder(name, config.image, listings):
                folders.append(name.rstrip("/"))
                continue
            patterns[pattern] = None
            files = match(name, listings)
            found.update((f.uri, f) for f in files if not f.lost)
            missing |= dict.fromkeys([f.uri for f in files if f.lost] if files else [name])
    known = {file.uri for listing in listings.values() for file in listing.files.values()}
    counts = expected_samples(config.expected, found, known)
    common = without_credentials(_common_root(list(patterns), listings))
    root = config.root_for(common, [*found.values(), *(ShardFile(name, 0) for name in missing)])
    ids = _shard_ids([*found, *missing], root, config.planned)
    shards = [
        Shard(ids[f.uri], without_credentials(f.uri), f.size, f.etag, counts.get(f.uri))
        for f in sorted(found.values(), key=lambda f: f.uri)
    ]
    shards += _frozen(config, folders)
    _check_unique(shards)
    if missing:
        lost = [Shard(ids[n], without_credentials(n), 0, MissingShards.ETAG) for n in sorted(missing)]
        raise MissingShards(", ".join(config.shards), shards, lost)
    return shards


def _places(planned: Iterable[Shard]) -> Iterator[str]:
    """The address of each shard's data; for a list of images, the images' folder."""
    return (folder_of(shard) if shard.uri.endswith(ENDING) else shard.uri for shard in planned)


def _frozen(config: DataConfig, folders: Sequence[str]) -> list[Shard]:
    """The shards that are lists of image folders. New lists are in `config.frozen`, and not written yet."""
    config.frozen = Frozen()
    for folder in dict.fromkeys(folders):
        if config.lists is None:
            raise UserError(
                f"data: {folder} is a folder of images, which a job freezes into lists. Name those of a job over it "
                f"(data.shards=[runs/NAME/inputs]), or make some: python -m recap.data.freeze {folder} LISTS, and "
                "data.shards=[LISTS]."
            )
        known, taken = [s for s in config.planned if s.uri.endswith(ENDING)], [s.id for s in config.frozen.shards]
        config.frozen.add(freeze(folder, config.lists, known, config.image, config.files_per_shard, taken))
    return config.frozen.shards


def _check_unique(shards: list[Shard]) -> None:
    seen: dict[str, Shard] = {}
    for shard in shards:
        if (other := seen.setdefault(shard.id, shard)) is not shard:
            raise UserError(
                f"plan: {other.uri} and {shard.uri} would both be shard {shard.id}. Name each file once, or set "
                "data.root to a folder that holds both."
            )


def _common_root(patterns: list[str], listings: dict[str, Folder]) -> str:
    """The folder that all patterns share, by their beginnings without braces and wildcards.

    A larger range of braces does not change it.
    """
    parts = [_constant_folder(pattern, listings) for pattern in patterns]
    shared = []
    for column in zip(*parts, strict=False):  # as deep as the least deep of them
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def root_of(planned: Iterable[Shard]) -> str:
    """The folder that the ids of planned shards are relative to; "" where all of them are whole paths."""
    for shard in planned:
        uri = shard.uri.partition("?")[0] if "://" in shard.uri else shard.uri
        if shard.id == _shard_id(uri, ""):
            continue  # it lies outside the root
        folder = uri
        while folder := folder.rpartition("/")[0]:
            if _shard_id(uri, folder) == shard.id:
                return folder
    return ""


def _constant_folder(pattern: str, listings: dict[str, Folder]) -> list[str]:
    """The parts of a pattern's path before its first brace or wildcard, without a file's name."""
    web = is_web_file(pattern)
    path = pattern.partition("?")[0] if web else pattern.rstrip("/")
    parts = path.split("/")
    for at, part in enumerate(parts):
        if re.search(r"[{*?\[]", part) and (web or not _is_literal(parts[: at + 1], listings)):
            return parts[:at]
    return parts[:-1] if web or path.endswith(ENDINGS) else parts


def _is_literal(parts: list[str], listings: dict[str, Folder]) -> bool:
    """Whether a path whose last part has braces or wildcards exists as it is spelled."""
    path = "/".join(parts)
    if "://" not in path:
        return os.path.lexists(path)
    return "{" not in parts[-1] and has_file("/".join(parts[:-1]), parts[-1], listings)


def _shard_ids(uris: Iterable[str], root: str, planned: Iterable[Shard]) -> dict[str, str]:
    """An id for each uri. The query of a URL is part of the id only where it alone tells two shards apart. The ids of
    planned shards do not change."""
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
    """A shard's id: its path relative to the root, without .tar or the like, escaped so that it is one file name.

    It stays the same when the data moves as a whole.
    """
    base = root.rstrip("/") + "/"
    name = quote(_without_ending(uri.removeprefix(base).lstrip("/")), safe="=+@,")
    if len(name) > LONGEST_ID:
        name = name[: LONGEST_ID - 17] + "~" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def _without_ending(path: str) -> str:
    return next((path.removesuffix(ending) for ending in ID_ENDINGS if path.endswith(ending)), path)
