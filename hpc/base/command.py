"""What all commands share: where they print, and how they end on a user's mistake."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import wraps

from rich.console import Console
from rich.markup import escape

from hpc.base.errors import Exit, UserError

console = Console(highlight=False, soft_wrap=True)
warn = Console(stderr=True, highlight=False, soft_wrap=True)


def end_on_closed_pipe() -> None:
    """End this process silently when it prints into a pipe whose reader has gone (`| head`). Only for the process of a
    command: the same signal comes for a socket that its other end has closed, and would end a worker.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """A command's `main`, which takes its arguments (default: those of the process) and returns its exit code. A
    UserError that it raises is shown as a message on stderr, without a traceback, and exits with 64.
    """

    @wraps(main)
    def shown(arguments: list[str] | None = None) -> int:
        try:
            return main(arguments)
        except UserError as error:
            warn.print(f"[red]{escape(str(error))}[/]")
            return Exit.USAGE

    return shown
