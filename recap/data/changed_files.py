"""Files of columns that are no longer what they were when a reader was launched: what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.remote_files import file_system
from recap.data.kinds.table import first_line

_MEND = (
    "A map job reads what is there now where it is launched again (python -m hpc.rerun), a training where it is "
    "started under another name."
)


def gone(name: str, shard: str, place: str) -> UserError:
    return UserError(
        f"data: column {name}: {place}, which holds shard {shard}, is gone: it was there when this job was launched. "
        f"Put it back. {_MEND}"
    )


@contextmanager
def as_launched(name: str, shard: str, where: Callable[[], tuple[str, int]]) -> Iterator[None]:
    """While a column's file is opened and read.

    Args:
        where: its path or URL, and the bytes that it had when it was found, 0 where that is not known.

    Raises:
        UserError: the file is gone, has another length than then, or holds no rows that can be read.
        OSError: the file system or the store did not answer as it should, and the file is as it was.
    """
    try:
        yield
    except FileNotFoundError:
        raise gone(name, shard, where()[0]) from None
    except (OSError, pa.ArrowException) as error:
        place, size = where()
        what = f"data: column {name}: {place}, which holds shard {shard},"
        now = _size(place) if size else size
        if now is not None and now != size:
            raise UserError(
                f"{what} was written again since this job was launched: it had {size:,} bytes, now it has {now:,}. Put "
                f"it back as it was. {_MEND}"
            ) from error
        if not is_damage(error):
            raise
        had = f"of {size:,} bytes, as it had" if size else "as it was"
        raise UserError(
            f"{what} cannot be read ({first_line(error)}). Expected was a parquet file {had} when this job was "
            f"launched: it is damaged, or was written again. Put it back. {_MEND}"
        ) from error


def is_damage(error: Exception) -> bool:
    """Whether an error is of a file's content. Those of file systems have a number, those of stores say what failed."""
    return not isinstance(error, (ConnectionError, TimeoutError)) and not getattr(error, "errno", None)


def unreadable(name: str, place: str, error: Exception) -> UserError:
    """For a file that is looked at before any shard's is."""
    return UserError(
        f"data: column {name} ({place}): its first file cannot be read ({first_line(error)}). Make it again, or put it "
        "back as it was."
    )


def _size(place: str) -> int | None:
    """Of a file as it is now; None where that cannot be had."""
    try:
        system, path = file_system(place)
        system.invalidate_cache()
        return int(system.info(path)["size"])
    except Exception:  # noqa: BLE001 - each store's client has exceptions of its own; the first error is told then
        return None
