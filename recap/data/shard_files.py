"""Finds the files that patterns name, in folders, in stores and on the web. Each folder is listed once."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system
from recap.data.addresses import without_credentials
from recap.data.folder_metadata import NAMES
from recap.data.kinds import ENDINGS, KINDS
from recap.data.saved import SPLITS, STATE, data_files, splits

VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified")
"""The keys under which stores list a file's version; the first that an entry has counts."""

_LOOKED_AT = 16  # folders in a folder in which images are looked for


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A listed file. etag: its version. lost: the name exists, but is no file (a dangling link)."""

    uri: str
    size: int
    etag: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder's listing: files by base name, and names of folders."""

    files: dict[str, ShardFile]
    folders: list[str]
    exists: bool = True


def read_list(pattern: str) -> list[str]:
    """`@file` stands for the entries of a text file, one a line, paths relative to it; # starts a comment."""
    if not pattern.startswith("@"):
        return [pattern]
    try:
        system, path = file_system(pattern[1:])
        lines = [line.strip() for line in system.cat_file(path).decode().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config: {without_credentials(pattern)}: this list cannot be read ({error}).") from error
    folder = pattern[1:].rpartition("/")[0]
    entries = [line for line in lines if line and not line.startswith("#")]
    relative = re.compile(r"(?!/|[\w+.:-]+://|[0-9a-fA-F]{64}$)")
    return [f"{folder}/{entry}" if relative.match(entry) else entry for entry in entries]


def expand(pattern: str) -> Iterable[str]:
    """The patterns that braces stand for. A local path that exists as it is spelled is not expanded."""
    if "://" not in pattern and os.path.lexists(pattern):
        return [pattern]  # braces may be part of a name
    # Imported here, so that the benchmarks of training steps run on a machine without this package.
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

    try:
        return braceexpand(pattern)
    except UnbalancedBracesError as error:
        raise UserError(f"config: `data.shards`: {without_credentials(pattern)}: braces do not match.") from error


def match(name: str, listings: dict[str, Folder]) -> list[ShardFile]:
    """The files that a pattern without braces names: a file, a glob, or a folder. [] if a file does not exist."""
    if is_web_file(name):
        return [ShardFile(name, 0)]  # servers need not list, and asking for each would be a request a shard
    folder, _, last = name.rstrip("/").rpartition("/")
    folder = folder or "/"
    if is_glob(name) and not is_there(name, listings):
        files = [
            f
            for parent in matching_folders(folder, listings)
            for base, f in list_folder(parent, listings).files.items()
            if _fits(base, last) and (base.endswith(ENDINGS) or last.endswith(ENDINGS))
        ]
        if not files:
            folders = f" It matches folders; their tars: {without_credentials(name).rstrip('/')}/*.tar."
            more = folders if matching_folders(name.rstrip("/"), listings) else ""
            raise UserError(f"plan: {without_credentials(name)}: no tar matches.{more} Correct data.shards.")
        return of_one_kind(files)
    if name.endswith(ENDINGS):
        exact = list_folder(folder, listings).files.get(last)
        return [exact] if exact else []
    inside = list_folder(name.rstrip("/"), listings)
    if SPLITS in inside.files:
        return [file for split in splits(name) for file in match(f"{name.rstrip('/')}/{split}", listings)]
    if STATE in inside.files:
        return saved_files(name, inside)
    files = [f for base, f in inside.files.items() if base.endswith(ENDINGS) and not base.startswith(".")]
    if not files:
        known = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        what = f"holds no {known}" if inside.exists else f"is no folder, and no {known}"
        more = f" itself; its folders may: {without_credentials(name).rstrip('/')}/*/*.tar" if inside.folders else ""
        raise UserError(f"plan: {without_credentials(name)} {what}{more}. Correct data.shards.")
    return of_one_kind(files)


def saved_files(name: str, inside: Folder) -> list[ShardFile]:
    """The files of a data set that `save_to_disk` wrote, without others in its folder. UserError where one is gone."""
    names = data_files(name)
    if gone := [base for base in names if base not in inside.files]:
        raise UserError(
            f"plan: {without_credentials(name)}: {STATE} names {gone[0]}, which is not there. Copy it anew."
        )
    return [inside.files[base] for base in names]


def of_one_kind(files: list[ShardFile]) -> list[ShardFile]:
    """The files of one kind only, the first of `KINDS` of which there are any."""
    return next((found for kind in KINDS if (found := [f for f in files if f.uri.endswith(kind.endings)])), files)


def is_image_folder(name: str, images: Sequence[str], listings: dict[str, Folder]) -> bool:
    """Whether a name is a folder of images: it, or folders in it, holds images or their metadata, and no shards."""
    if is_web_file(name) or name.endswith(ENDINGS):
        return False
    folder = name.rstrip("/")
    inside = list_folder(folder, listings)
    if any(base.endswith(ENDINGS) or base in (SPLITS, STATE) for base in inside.files):
        return False
    below = [list_folder(f"{folder}/{base}", listings) for base in inside.folders[:_LOOKED_AT]]
    if below and not any(found.files for found in below):  # as in FOLDER/SPLIT/CLASS/image.jpg
        first = f"{folder}/{inside.folders[0]}"
        below += [list_folder(f"{first}/{base}", listings) for base in below[0].folders[:_LOOKED_AT]]
    names = [base.lower() for found in [inside, *below] for base in found.files if not base.startswith(".")]
    if any(base.endswith(ENDINGS) for base in names):
        return False
    return any(base.rpartition(".")[2] in images or base in NAMES for base in names)


def is_web_file(name: str) -> bool:
    """Whether a name is the URL of a file on a web server, whose folders cannot be listed."""
    if not name.startswith(("http://", "https://")):
        return False
    parts = urlsplit(name)
    return parts.path.endswith(ENDINGS) or "=" in parts.query


def is_glob(name: str) -> bool:
    return re.search(r"[*?\[]", name) is not None


def is_there(name: str, listings: dict[str, Folder]) -> bool:
    """Whether a path with wildcard characters exists as it is spelled: a folder may be called `set [v2]`."""
    parts = name.rstrip("/").split("/")
    return all(
        has_file("/".join(parts[:at]) or "/", part, listings) for at, part in enumerate(parts) if at and is_glob(part)
    )


def has_file(folder: str, base: str, listings: dict[str, Folder]) -> bool:
    listing = list_folder(folder, listings)
    return base in listing.files or base in listing.folders


def _fits(base: str, pattern: str) -> bool:
    """Whether a pattern matches. As in a shell, hidden files do not match (macOS writes `._00000.tar` beside tars)."""
    return fnmatchcase(base, pattern) and (not base.startswith(".") or pattern.startswith("."))


def matching_folders(pattern: str, listings: dict[str, Folder]) -> list[str]:
    """The folders that a pattern names, which may have wildcards in any part."""
    if not is_glob(pattern):
        return [pattern]
    parent, _, last = pattern.rpartition("/")
    parents = matching_folders(parent or "/", listings)
    return [
        f"{found}/{base}"
        for found in parents
        for base in list_folder(found, listings).folders
        if base == last or (_fits(base, last) and last not in list_folder(found, listings).folders)
    ]


def list_folder(folder: str, listings: dict[str, Folder]) -> Folder:
    """A folder's listing, asked for once."""
    if folder not in listings:
        try:
            listings[folder] = _list_remote(folder) if "://" in folder else _list_local(folder)
        except (FileNotFoundError, NotADirectoryError):
            listings[folder] = Folder({}, [], exists=False)
        except (OSError, ImportError, ValueError) as error:
            raise UserError(
                f"plan: {without_credentials(folder)} cannot be listed ({type(error).__name__}: {str(error)[:200]}). "
                "Credentials come from the environment or from fsspec's own configuration."
            ) from error
    return listings[folder]


def _list_local(folder: str) -> Folder:
    files, folders = {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    uri = os.path.join(folder, entry.name)
                    if entry.name.endswith(ENDINGS):
                        facts = entry.stat()
                        files[entry.name] = ShardFile(uri, facts.st_size, str(facts.st_mtime))
                    else:  # statistics and other files: only their names are used
                        files[entry.name] = ShardFile(uri, 0)
                elif entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.endswith(ENDINGS):  # a dangling link or a pipe
                    files[entry.name] = ShardFile(os.path.join(folder, entry.name), 0, lost=True)
            except FileNotFoundError:
                continue  # gone since the listing
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                if entry.name.endswith(ENDINGS):  # a link to itself is as one that leads nowhere
                    files[entry.name] = ShardFile(os.path.join(folder, entry.name), 0, lost=True)
    return Folder(files, sorted(folders))


def _list_remote(folder: str) -> Folder:
    system, path = file_system(folder)
    files, folders = {}, []
    for entry in system.ls(path, detail=True):
        base = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["type"] == "file":
            etag = str(next((entry[key] for key in VERSIONS if entry.get(key)), ""))
            files[base] = ShardFile(f"{folder.rstrip('/')}/{base}", int(entry.get("size") or 0), etag.strip('"'))
        else:
            folders.append(base)
    return Folder(files, sorted(folders))
