"""The command line of `vit.replay`."""

import argparse

from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.config.user_error import UserError
from vit.replay.ranks import parse_ranks
from vit.run.console import started_as

AROUND = 5  # steps on each side of `--around`


def parse_options(args: list[str] | None) -> argparse.Namespace:
    """The options; invalid ones end the process with one line and code 2."""
    parser = CommandParser(
        started_as("vit.replay"),
        description="Runs any step of a run again, from the checkpoint before it, without changing the run.",
    )
    parser.add_argument("run", type=user_path, help="run folder; the run may be live")
    parser.add_argument("--step", type=int, metavar="N", help="the step to replay, counted as in the log")
    parser.add_argument("--around", type=int, metavar="N", help="draw the loss of each sample of the steps around it")
    parser.add_argument("--steps", type=int, metavar="K", help=f"steps on each side of it (default: {AROUND})")
    parser.add_argument("--out", type=user_path, metavar="FILE.png", help="picture (default: runs/RUN-around-N.png)")
    parser.add_argument("--anomaly", action="store_true", help="find the first operation and the samples not finite")
    parser.add_argument("--pictures", type=user_path, metavar="FILE.png", help="draw what the model saw, worst first")
    parser.add_argument(
        "--dump", type=user_path, metavar="FOLDER", help="write inputs, statistics of activations, and gradients"
    )
    parser.add_argument(
        "--ranks", default="", metavar="4,2,1", help="run the step on these numbers of ranks, too, and compare all bits"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object with all samples instead of tables")
    parser.add_argument(
        "--data.train", dest="data", type=user_path, metavar="FILE", help="the training set, if it was moved"
    )
    parser.add_argument("--config", type=user_path, metavar="FILE", help="the config, if the run has saved none")
    parser.add_argument("--no-compile", action="store_true", help="do not compile: starts faster, rounds differently")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default: auto)")
    options = parser.parse_args(args)
    _check_around(parser, options)
    if options.step is None:
        parser.error("give the step to replay: --step N, or --around N for the steps around it")
    if options.step < 1:
        parser.error(f"--step {options.step}: steps are counted from 1")
    try:
        options.ranks = parse_ranks(options.ranks) if options.ranks else []
    except UserError as error:
        parser.error(str(error))
    for name in ("pictures", "out"):
        path = getattr(options, name)
        if path is not None and path.suffix.lower() != ".png":
            parser.error(f"--{name} {path}: the name of the picture must end with .png")
    return options


def _check_around(parser: CommandParser, options: argparse.Namespace) -> None:
    """The options of `--around`, which is instead of `--step`."""
    if options.around is None:
        for name in ("steps", "out"):
            if getattr(options, name) is not None:
                parser.error(f"--{name} belongs to --around N")
        return
    for name in ("step", "anomaly", "pictures", "ranks", "dump"):
        if getattr(options, name, None):
            parser.error(f"--around does not go with --{name}: run them one after the other")
    if options.around < 1:
        parser.error(f"--around {options.around}: steps are counted from 1")
    options.steps = AROUND if options.steps is None else options.steps
    if options.steps < 0:
        parser.error(f"--steps {options.steps} must be at least 0")
    options.step = options.around
