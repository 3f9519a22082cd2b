"""One slot of a map job: what an array element runs, and what may be run by hand.

    python -m hpc.worker runs/demo --slot 3 [--submission UUID]

Exit codes: 0 complete, 1 incomplete (others still work, or cancelled), 2 some shards failed or gave nothing, or no
sample is ok, 64 wrong usage, 70 crashed, 75 requeue me (time limit, preemption), 143 terminated. Signals: USR2 drains
and exits 75, TERM drains and exits 143.
"""

from __future__ import annotations

import logging
import sys

from hpc.base.errors import Exit, Parser, UserError
from hpc.base.no_pandas import without_pandas
from hpc.run.directory import Run, Submission


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.worker", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--slot", type=int, required=True, help="number of this slot, from 0")
    parser.add_argument("--submission", help="which launch to work for (default: the newest)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        from hpc.map.agent import Agent

        return Agent(*_task(Run(args.run), args.submission), args.slot).main()
    except OSError:  # such as a file system that was away for a moment: a later life may succeed
        logging.exception("the agent crashed")
        return Exit.CRASHED
    except UserError as error:
        logging.error("%s", error)
        return Exit.USAGE
    except Exception:
        logging.exception("the agent crashed")
        return Exit.CRASHED


def _task(run: Run, uuid: str | None) -> tuple[Run, Submission]:
    """The submission to work for; UserError where this node does not see what the launch wrote."""
    try:
        return run, run.submission(uuid) if uuid else run.latest()
    except FileNotFoundError as error:
        raise UserError(
            f"worker: {error.filename} is not there. Is {run.path} on a file system "
            "that this node shares with the launch?"
        ) from error


if __name__ == "__main__":
    without_pandas()
    sys.exit(main())
