"""Reads images by the names that conversations give them: from a folder, zips, or tars."""

from __future__ import annotations

import glob
import os
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from recap.sft.templates import BadSample


class ImageStore:
    """Images by name. Archives are listed once, and opened again in each process. A name that is in two archives is an
    error, since it is not clear which image is meant."""

    def __init__(self, place: str) -> None:
        self._folder: Path | None = None
        self._twice: dict[str, str] = {}  # name -> a second archive that holds it
        self._tarred: dict[str, tuple[str, int, int]] = {}  # name -> tar, offset, bytes
        self._zipped: dict[str, tuple[str, str]] = {}  # name -> zip, name in it
        self._open: dict[tuple[int, str], Any] = {}
        if not place or Path(place).is_dir():
            self._folder = Path(place)
            return
        files = sorted(glob.glob(place))
        if not files:
            raise UserError(f"data: `images`: {place!r} is neither a folder nor an archive that exists")
        for file in files:
            try:
                self._list(file)
            except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"data: `images`: {file} is neither a zip nor an uncompressed tar ({error}). Unpack or repair it."
                ) from error

    def _list(self, file: str) -> None:
        if file.endswith(".zip"):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    self._note(file, name)
                    self._zipped[os.path.normpath(name)] = (file, name)
            return
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isfile():
                    self._note(file, member.name)
                    self._tarred[os.path.normpath(member.name)] = (file, member.offset_data, member.size)

    def _note(self, file: str, name: str) -> None:
        plain = os.path.normpath(name)
        found = self._tarred.get(plain) or self._zipped.get(plain)
        if found and found[0] != file and not name.endswith("/"):
            self._twice[plain] = file

    def read(self, name: str) -> bytes:
        """The bytes of an image file. BadSample where it cannot be read."""
        try:
            if self._folder is not None:
                return (self._folder / name).read_bytes()
            plain = os.path.normpath(name)
            if plain in self._twice:
                raise BadSample("image: two archives hold its name", f"{name}: {self._twice[plain]} and another")
            if plain in self._zipped:
                file, member = self._zipped[plain]
                return self._handle(file, zipfile.ZipFile).read(member)
            file, offset, size = self._tarred[plain]
            return os.pread(self._handle(file, lambda path: os.open(path, os.O_RDONLY)), size, offset)
        except (OSError, KeyError) as error:
            raise BadSample("image: missing", f"{name}: {type(error).__name__}") from error
        except (
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
        ) as error:  # RuntimeError: encrypted
            raise BadSample("image: damaged", f"{name}: {error}") from error

    def _handle(self, path: str, opener: Any) -> Any:
        at = (os.getpid(), path)
        if at not in self._open:
            self._open[at] = opener(path)
        return self._open[at]
