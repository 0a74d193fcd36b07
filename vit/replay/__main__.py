"""Runs any step of a run again, from the checkpoint before it, and shows what the model saw and computed.

    python -m vit.replay runs/vit_b16 --step 12345

The run folder is only read, so the run may be live.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    from vit.run.garbage_collection import pause_collection

    pause_collection()

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from vit.config.paths import printable
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.decode import DamagedDataError
from vit.distributed.world import World, join_process_group
from vit.replay.anomaly import anomaly_of_update, find_anomaly
from vit.replay.around import picture_of_window, replay_around
from vit.replay.dump import check_dump_folder, write_dump
from vit.replay.options import parse_options
from vit.replay.output_places import check_picture_place
from vit.replay.pictures import contact_sheet, save_picture
from vit.replay.progress import WayProgress, describe_start, teller
from vit.replay.ranks import Task, bits_of_update, compare_ranks, save_state, temporary_folder
from vit.replay.recorded import RecordedRun
from vit.replay.replayer import ReplayedStep, Replayer
from vit.replay.report import as_json, print_step
from vit.replay.sample_names import SampleNames
from vit.run.command import print_error, run_command
from vit.run.progress import format_duration


def replay(options: argparse.Namespace, run: RecordedRun, world: World) -> int:
    """Replays the step, and prints what was asked for; returns the exit code."""
    quiet: bool = options.json
    tell = teller(quiet)
    replayer = Replayer(run, world, options.data, not options.no_compile, tell)
    checkpoint = replayer.start(options.step)
    tell(describe_start(run, checkpoint, options.step))
    with WayProgress(replayer.state.step, options.step, quiet) as progress:
        seconds = replayer.advance(options.step, progress.show)
    if seconds > 1:
        tell(f"the state before step {options.step:,} was reached in {format_duration(seconds)}")
    step = replayer.forward_backward()
    names = SampleNames(replayer.train_data.beton)
    found = as_json(step, replayer, names) if quiet else {}
    if not quiet:
        print_step(step, replayer, names)
    if options.pictures:
        title = f"{run.folder.path.absolute().name}, step {step.step:,}: loss {step.loss:.4g}"
        save_picture(contact_sheet(step, names, title), options.pictures)
        tell(f"\nwhat the model saw: {printable(options.pictures)}")
    if options.dump:
        write_dump(options.dump, step, replayer, as_json(step, replayer, names))
        tell(f"\ninputs, activations and gradients: {printable(options.dump)}")
    for name, lines in _look_further(options, step, replayer, names).items():
        found[name] = lines
        tell("\n" + "\n".join(lines))
    if quiet:
        print(json.dumps(found))
    return 0


def _look_further(
    options: argparse.Namespace, step: ReplayedStep, replayer: Replayer, names: SampleNames
) -> dict[str, list[str]]:
    """What `--anomaly` and `--ranks` print.  Completes the step with its update, if they need that."""
    out: dict[str, list[str]] = {}
    if options.anomaly:
        out["anomaly"] = find_anomaly(step, replayer, names)
    if options.ranks:
        with temporary_folder() as folder:
            state = save_state(replayer, Path(folder))
            here = bits_of_update(replayer, step.losses)
            where = (options.run, options.config, options.data)
            task = Task(*where, not options.no_compile, options.device, options.step, state)
            out["ranks"] = compare_ranks(task, options.ranks, here)
    elif options.anomaly and not out["anomaly"]:
        replayer.update()
    if options.anomaly and not out["anomaly"]:
        out["anomaly"] = anomaly_of_update(step, replayer)
    return out


def _check_files(options: argparse.Namespace, cfg: Config) -> None:
    """Raises UserError if the training set is missing, or if what was asked for cannot be written."""
    if options.data is None and not cfg.data.train.exists():
        raise UserError(
            f"{printable(cfg.data.train)} does not exist, the training set of the run; if it was moved, give its new "
            "place: --data.train FILE"
        )
    if options.dump:
        check_dump_folder(options.dump)
    if options.pictures:
        check_picture_place("--pictures", options.pictures)
    if options.around is not None:
        check_picture_place("--out", picture_of_window(options))


def main(args: list[str] | None = None) -> int:
    """The command line.  Exit code 2 for errors that the user can fix."""
    options = parse_options(args)
    try:
        run = RecordedRun(options.run, options.config)
        cfg = run.config(options.step, options.data)
        _check_files(options, cfg)
        for ranks in options.ranks:
            cfg.check_ranks(ranks)
        with join_process_group(replace(cfg, device=options.device)) as world:
            return (replay if options.around is None else replay_around)(options, run, world)
    except (UserError, OSError, DamagedDataError) as error:
        print_error("vit.replay", error)
        return 2
    except torch.OutOfMemoryError:
        what = f"the memory of the GPU is not enough for {cfg.micro_batch} images (micro_batch)"
        print_error("vit.replay", f"{what}; use another GPU, or --device cpu")
        return 2


if __name__ == "__main__":
    run_command(main)
