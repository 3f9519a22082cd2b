"""Plan a job and submit it to Slurm, as one array of node slots (map) or one job of many ranks (gang), or run it here.

    python -m hpc.launch configs/caption/demo.yaml                         run the demo here
    python -m hpc.launch CONFIG cluster=slurm cluster.partition=gpu --dry-run    print the plan and the batch script
    python -m hpc.launch CONFIG cluster=slurm cluster.partition=gpu --check      try model and data in a job of one slot
    python -m hpc.launch configs/sft/demo.yaml                             train here (gang: the config names a trainer)
    python -m hpc.launch configs/pipeline/recap_demo.yaml                  a pipeline: the config has `stages:`
    python -m hpc.launch CONFIG captioner.model=/models/llava-llama-3-8b name=first-try
    python -m hpc.launch CONFIG pilot=20000                                so many samples first, from all over the plan

`key=value` changes the config (`data.0.path=/data` the first entry of a list), `--flags` are actions. Launching over a
run that exists continues it: finished shards are never redone. --check loads the model as a slot does, here or in a job
that it waits for, applies it to a few samples of the data, and shows what came of them, before anything is submitted:
python -m hpc.launch CONFIG --check

With pilot=N, whole blocks of 512 samples are made first. The same launch with pilot=0 takes them over, and its rows are
compared with theirs.

HPC_WEBHOOK in the environment (of slots: cluster.prelude can set it) is an address that is told when a map run is
complete, has paused or has failed, see docs/operating.md.

Exit codes: 0 submitted or complete, 1 incomplete (or: --check found that the work does not work), 2 some shards
failed or gave nothing, or no sample is ok, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import math
import sys

from hpc import config as configs
from hpc.base.command import command, end_on_closed_pipe
from hpc.base.errors import Parser, UserError
from hpc.base.no_pandas import without_pandas
from hpc.map.launch import describe, dry_run, prepare, submit
from hpc.pipeline import definition as pipeline


def _pipeline(args: argparse.Namespace) -> int:
    from hpc.pipeline import launch as pipeline_launch

    if args.detach or args.no_submit or args.allow_missing or args.rate or args.append or args.check:
        raise UserError(
            "launch: --detach, --no-submit, --allow-missing, --append, --rate and --check are for one job, not for a "
            "pipeline."
        )
    asked = pipeline_launch.PipelineRequest(args.supersede, args.only or "", args.from_stage or "")
    return pipeline_launch.launch(args.config, args.overrides, asked, dry_run=args.dry_run)


def _training(args: argparse.Namespace, config: configs.Config) -> int:
    from hpc.gang import launch as gang_launch
    from hpc.gang import sweep

    if args.no_submit or args.allow_missing or args.append or args.check:
        raise UserError(
            "launch: --no-submit, --allow-missing, --append and --check are for map jobs, not for training; "
            "what a training can know of its data and weights is said by --dry-run."
        )
    training = sweep if config.run.sweep else gang_launch
    return training.launch(config, supersede=args.supersede, dry_run=args.dry_run, detach=args.detach)


def _rate(text: str) -> float:
    if not 0 < (rate := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: samples a second are a number above 0")
    return rate


def _map(args: argparse.Namespace, config: configs.Config) -> int:
    without_pandas()
    job = prepare(
        config, supersede=args.supersede, dry_run=args.dry_run, allow_missing=args.allow_missing, append=args.append
    )
    job.rate = args.rate
    if args.dry_run:
        return dry_run(job)
    describe(job)
    if args.check:
        from hpc.map import check_launch

        return check_launch.launch(job)
    return submit(job, start=not args.no_submit, detach=args.detach)


def _parser() -> Parser:
    parser = Parser(prog="python -m hpc.launch", description=__doc__)
    parser.add_argument("config", help="a YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print plan and batch script, leave nothing behind")
    instead.add_argument(
        "--check", action="store_true", help="load the model, try it on a few samples of the data, submit nothing"
    )
    parser.add_argument(
        "--supersede", action="store_true", help="continue although the output's identity or input changed"
    )
    parser.add_argument("--rate", type=_rate, help="samples/s of one GPU or engine, for forecasts (a launch keeps it)")
    parser.add_argument("--detach", action="store_true", help="cluster=local: go on in the background")
    parser.add_argument("--no-submit", action="store_true", help="write the run directory, start nothing")
    parser.add_argument("--allow-missing", action="store_true", help="plan shards that do not exist, as failed ones")
    parser.add_argument(
        "--append", action="store_true", help="keep shards of the run's plan that this launch does not name"
    )
    parser.add_argument(
        "--from", dest="from_stage", metavar="STAGE", help="pipelines: do this stage and all behind it again"
    )
    parser.add_argument("--only", metavar="STAGE", help="pipelines: do this stage again, and no other")
    return parser


@command
def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    if pipeline.is_pipeline(args.config):
        return _pipeline(args)
    if args.from_stage or args.only:
        raise UserError(f"launch: --from and --only are for pipelines; {args.config} has no `stages:`.")
    config = configs.load(args.config, args.overrides)
    return _training(args, config) if config.is_gang else _map(args, config)


if __name__ == "__main__":
    if "--dry-run" in sys.argv:  # a real launch may write to stores and servers
        end_on_closed_pipe()
    sys.exit(main())
