"""Trains a Vision Transformer: the program that torchrun starts, one process for each GPU.

torchrun --nproc-per-node 2 -m vit.train --config configs/demo.yaml --run-dir runs/demo
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()
    from vit.run.garbage_collection import pause_collection

    pause_collection()
    from vit.distributed.launcher import end_with_launcher

    end_with_launcher()  # before the imports below, which take seconds: torchrun may be killed meanwhile

import errno
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from jsonargparse import Namespace

from vit.checkpoint.format import find_checkpoints, step_of
from vit.checkpoint.initial_settings import InitialSettings
from vit.config.batches import has_canonical_order
from vit.config.parser import config_parser, parse_config
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.decode import DamagedDataError
from vit.data.stage import StoppedError
from vit.distributed.launcher import read_place
from vit.distributed.world import World, device_name, join_process_group
from vit.history.device_changes import device_changes
from vit.history.words import show_end, show_resuming
from vit.integrity.finding import WrongArithmeticError
from vit.run.activity import publish_activity
from vit.run.clock import Clock, process_start
from vit.run.command import print_error, run_command
from vit.run.console import started_as
from vit.run.disk_errors import explained
from vit.run.folder import JOB_VARIABLE, InUseError, RunFolder
from vit.run.heartbeat import HEARTBEAT_VARIABLE, LEAVING, Heartbeat
from vit.run.jsonl import flush
from vit.run.output import protect_output
from vit.run.progress import show
from vit.training.gpu_memory import GpuMemoryError, explained_out_of_memory
from vit.training.micro_batch_search import find_micro_batch
from vit.training.trainer import Outcome, Trainer

OWNER_WAIT_SECONDS = 60  # for processes of an earlier, killed attempt of the same job that still use the run folder

FLUSH_SECONDS = 5  # for the last lines of the ledger and the learning curve, if the disk cannot be written at the end


def attempt(cfg: Config, run: RunFolder, world: World, clock: Clock, allowed_changes: list[str]) -> Outcome:
    """Runs one attempt from the newest checkpoint on, and records it in the ledger."""
    if world.rank == 0:
        publish_activity(run.path)
    try:
        trainer = Trainer(cfg, run, world, clock, allowed_changes)
    except StoppedError:
        if world.rank == 0:
            saved_step = max(map(step_of, find_checkpoints(run.checkpoints)), default=0)
            run.record(Outcome.STOPPED.value, step=saved_step, seconds=clock.summary())
        clock.beat(LEAVING)
        return Outcome.STOPPED
    clock.add("start", time.time() - clock.started - sum(clock.seconds.values()))
    if world.rank == 0:
        counts = [stage.micro_batches for stage in cfg.stages]
        other = [count for count in counts if not has_canonical_order(count, world.size)]
        if cfg.exact == "bits" and other:
            order = f"{world.size} ranks add {other[0]} micro-batches in another order than one rank"
            show(f"{order}; to get the same bits, always resume on {world.size} ranks", lasting=True)
        started = trainer.milestones.position(trainer.state.step)
        run.record(
            "started",
            step=trainer.state.step,
            epoch=started["epoch"],
            ranks=world.size,
            device=str(world.device.type),
            device_name=device_name(world.device),
            seconds=clock.summary(),
            **(trainer.log.before if trainer.log is not None else {}),
        )
        show_resuming(run, started)
        changes = device_changes(run.events())
        if cfg.exact == "bits" and changes and changes[-1].step == trainer.state.step:
            show(f"another kind of device, whose bits differ: {changes[-1]}", lasting=True)
    try:
        outcome = trainer.train()
    except WrongArithmeticError:
        trainer.saver.finish()  # an earlier state, which all ranks had alike: the next attempt resumes there
        raise
    trainer.agreement.close()
    clock.beat(LEAVING)
    trainer.saver.close()
    if trainer.log is not None:
        result = trainer.scores if outcome is Outcome.FINISHED else {"signal": trainer.agreement.received_signal}
        optional = {"unsaved": trainer.save_error, "skipped": sorted(trainer.state.skipped)}
        optional = {name: value for name, value in optional.items() if value}
        run.record(outcome.value, step=trainer.saver.saved_step, seconds=clock.summary(), **result, **optional)
        if trainer.save_error:
            show(f"stopped; {trainer.save_error}", lasting=True)
        trainer.log.close(finished=outcome is Outcome.FINISHED)
        if outcome is Outcome.FINISHED:
            show_end(run)
    unwritten = flush(FLUSH_SECONDS)
    for problem in unwritten:
        show(f"the end of this attempt could not be logged: {problem}", lasting=True)
    if trainer.save_error or unwritten:
        sys.exit(1)
    return outcome


def main(args: list[str] | None = None) -> None:
    """The command line.  Exit code 0 also after a signal, if the state is saved; 2 for errors that the user can fix."""
    protect_output(keep_going=True)
    clock = Clock(started=process_start())
    parser = config_parser(started_as("vit.train"), "Trains a Vision Transformer, or resumes a run.")
    parser.add_argument("--run-dir", type=user_path, help="run folder (default: runs/ and the config's name)")
    parser.add_argument(
        "--override-resume",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="settings that may differ from the checkpoint's when a run is resumed",
    )
    parser.add_argument(
        "--find-micro-batch",
        type=int,
        metavar="RANKS",
        help="do not train: try micro-batches for a run on so many ranks, on one GPU or CPU, and print the fastest",
    )
    settings = InitialSettings(_run_folder)
    cfg, options = parse_config(parser, args, settings)
    try:
        if options.find_micro_batch is not None:
            find_micro_batch(cfg, options.find_micro_batch)
            return
        place = read_place()
    except UserError as error:
        sys.exit(_print_error(error, 0))  # the rank's number may be the one that is wrong
    rank, run = place.rank, _run_folder(options)
    for line in settings.lines if rank == 0 else []:
        show(line, lasting=True)
    clock.heartbeat = Heartbeat(run.logs)
    # A supervisor may start its ranks a moment before `submit.py` leaves the folder.
    wait_seconds = OWNER_WAIT_SECONDS if {JOB_VARIABLE, HEARTBEAT_VARIABLE} & os.environ.keys() else 0
    try:
        if rank == 0 and not wait_seconds:  # in a job this may pass, and the job tries again
            _make_folder(run)
        owned = run.owned(wait_seconds) if rank == 0 else nullcontext()
        with owned, join_process_group(cfg) as world, explained_out_of_memory(cfg, world):
            attempt(cfg, run, world, clock, options.override_resume)
    except InUseError as error:
        # A job may find the folder free later; a user must stop the other process first.
        sys.exit(_print_error(error, rank, os.EX_TEMPFAIL if wait_seconds else 2))
    except Exception as error:
        _record_failure(run, rank, error, clock)
        if isinstance(error, WrongArithmeticError):  # raised on all ranks
            sys.exit(_print_error(error, place.local_rank, code=1))
        if not isinstance(error, (UserError, FloatingPointError, DamagedDataError)):
            raise
        # Damaged data or a full GPU may be seen by one rank only, which must print the error.  The others are raised on
        # all ranks of a node, if not on all nodes (a GPU, a variable or a file may be missing): its first rank prints.
        on_one_rank = isinstance(error, (DamagedDataError, GpuMemoryError))
        sys.exit(_print_error(error, 0 if on_one_rank else place.local_rank))


def _run_folder(options: Namespace) -> RunFolder:
    return RunFolder(options.run_dir or Path("runs", Path(str(options.config[-1])).stem))


def _make_folder(run: RunFolder) -> None:
    """Raises UserError if the run folder cannot be made or written."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not os.access(run.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run.path))
    except OSError as error:
        raise UserError(f"--run-dir {explained(error, 'choose a folder in which you can write')}") from None


def _record_failure(run: RunFolder, rank: int, error: Exception, clock: Clock) -> None:
    """Adds the failure to the ledger.  If that fails too, the error remains the one that is reported."""
    finding = {"finding": error.finding.event()} if isinstance(error, WrongArithmeticError) else {}
    try:
        run.record("failed", rank=rank, error=f"{type(error).__name__}: {error}", seconds=clock.summary(), **finding)
    except FileNotFoundError:
        return  # the run folder was never created
    except OSError as problem:
        error.add_note(f"This failure could not be recorded: {problem}")


def _print_error(error: Exception, rank: int, code: int = 2) -> int:
    """Prints an error without a traceback, if `rank` is 0; returns the exit code."""
    if rank == 0:
        print_error("vit.train", error)
    return code


if __name__ == "__main__":
    run_command(main, keep_going=True)
