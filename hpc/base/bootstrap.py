"""Start a module of a run, once all of its code is what the launch recorded.

    python -I -c "$(cat hpc/base/bootstrap.py)" RUN/code/DIGEST hpc.worker RUN --slot 3

Others of a group may be able to write a run directory. So the code that checks it must not come from there: a batch
script holds this text, and Slurm keeps the script. Nothing else is imported before the check. Every file below
RUN/code/DIGEST is read once, all of them together must have that digest, and what was read is what runs, from a copy in
$TMPDIR that only its owner can write. The next life on this node checks that copy and uses it again. All of this needs
only python.

Exit codes: those of the module; 64 where the code is not what was recorded, 70 where no copy can be made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path


def read(root: Path) -> dict[str, bytes]:
    """Content of all files below a directory but python caches, by relative path. ValueError for what is no plain
    file, such as a link.
    """
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for path in (Path(folder, name) for name in names + folders):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[str(path.relative_to(root))] = path.read_bytes()
            elif not stat.S_ISDIR(mode):
                raise ValueError(f"{path} is not a plain file")
    return found


def digest(files: dict[str, bytes]) -> str:
    """Hash (32 hex digits) of names and contents."""
    content = hashlib.sha256()
    for name in sorted(files):
        content.update(name.encode() + b"\0%d\0" % len(files[name]) + files[name])
    return content.hexdigest()[:32]


def copy(files: dict[str, bytes], name: str) -> Path:
    """The path of our copy of these files. The times of a copy that is there are renewed, so that what tidies up old
    files in $TMPDIR leaves it.
    """
    folder = _own_folder()
    target = folder / name
    if target.exists():
        for path in target.rglob("*.py"):
            os.utime(path, (time.time(), path.stat().st_mtime))
        if read(target) == files:
            return target
        target.rename(Path(tempfile.mkdtemp(prefix="old-", dir=folder)) / name)
    making = Path(tempfile.mkdtemp(prefix="making-", dir=folder))
    for relative, data in files.items():
        path = making / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        making.rename(target)
    except OSError:  # another process was faster: the same files
        shutil.rmtree(making)
    return target


def _own_folder() -> Path:
    """A directory that only we can write."""
    folder = Path(tempfile.gettempdir(), f"hpc-code-{os.geteuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="hpc-code-"))
    return folder


def main() -> None:
    code, module, *arguments = sys.argv[1:]
    wanted = Path(code).name.partition("-")[0]
    try:
        files = read(Path(code))
        if not files:
            raise ValueError("it is not there. Does this node share the file system of the launch?")
        if digest(files) != wanted:
            raise ValueError("it was changed after it was taken. Remove it and launch again.")
    except (OSError, ValueError) as error:
        print(f"code: {code}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(64)
    try:
        root = copy(files, wanted)
    except OSError as error:
        print(f"code: no copy can be made in {tempfile.gettempdir()}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(70)
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


if __name__ == "__main__":
    main()
