"""Lists all files below a folder, on disks and in stores."""

from __future__ import annotations

import errno
import os

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system
from recap.data.addresses import without_credentials
from recap.data.file_list import ListedFile
from recap.data.shard_files import VERSIONS


def walk(folder: str) -> dict[str, ListedFile]:
    """All files below a folder, by their path from it, without hidden files and folders.

    Raises:
        UserError: the folder cannot be listed.
    """
    try:
        return _remote(folder) if "://" in folder else _local(folder)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"plan: {without_credentials(folder)} cannot be listed ({error}).") from error


def _local(root: str) -> dict[str, ListedFile]:
    files: dict[str, ListedFile] = {}
    seen, left = set[tuple[int, int]](), [""]
    while left:
        inside = left.pop()
        facts = os.stat(os.path.join(root, inside))
        if (facts.st_dev, facts.st_ino) in seen:
            continue  # a link to a folder above
        seen.add((facts.st_dev, facts.st_ino))
        with os.scandir(os.path.join(root, inside)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{inside}/{entry.name}" if inside else entry.name
                try:
                    if entry.is_dir():
                        left.append(path)
                    elif entry.is_file():
                        about = entry.stat()
                        files[path] = ListedFile(path, about.st_size, str(about.st_mtime))
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP):
                        raise
                    continue  # a link that leads nowhere or to itself, or gone since the listing
    return files


def _remote(folder: str) -> dict[str, ListedFile]:
    system, root = file_system(folder)
    root = root.rstrip("/")
    files = {}
    for name, about in system.find(root, detail=True).items():
        path = name[len(root) :].lstrip("/")
        if any(part.startswith(".") for part in path.split("/")):
            continue
        time = next((about[key] for key in VERSIONS if about.get(key)), "")
        files[path] = ListedFile(path, int(about.get("size") or 0), str(time).strip('"'))
    return files
