"""Trains a Vision Transformer: what torchrun starts, one process a GPU.

torchrun --nproc-per-node 2 -m vit.train --config configs/demo.yaml --run-dir runs/demo
"""

import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psutil

from vit.checkpoint.format import find_checkpoints, step_of
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config
from vit.data.decode import DamagedDataError
from vit.data.stage import StoppedError
from vit.distributed.gradients import same_tree
from vit.distributed.world import World, end_with_parent, join
from vit.run.clock import Clock
from vit.run.folder import JOB_VARIABLE, InUseError, RunFolder
from vit.run.heartbeat import LEAVING, Heartbeat
from vit.run.jsonl import flush
from vit.run.progress import show
from vit.training.trainer import Outcome, Trainer

PATIENCE_SECONDS = 60  # with what a killed attempt of the same job left behind


def attempt(cfg: Config, run: RunFolder, world: World, clock: Clock, accepted: list[str]) -> Outcome:
    """One life of a run's processes, from the newest checkpoint on, written down in the ledger."""
    try:
        trainer = Trainer(cfg, run, world, clock, accepted)
    except StoppedError:
        if world.rank == 0:
            safe = max(map(step_of, find_checkpoints(run.checkpoints)), default=0)
            run.record(Outcome.STOPPED.value, step=safe, seconds=clock.summary())
        clock.sign(LEAVING)
        return Outcome.STOPPED
    clock.add("start", time.time() - clock.started - sum(clock.seconds.values()))
    if world.rank == 0:
        if cfg.exact == "bits" and not same_tree(cfg.micro_batches, world.size):
            order = f"{world.size} ranks sum {cfg.micro_batches} micro-batches in an order of their own"
            show(f"{order}: keep to {world.size}", lasting=True)
        run.record("started", step=trainer.state.step, ranks=world.size, device=str(world.device.type))
    outcome = trainer.train()
    trainer.agreement.close()
    clock.sign(LEAVING)
    trainer.saver.close()
    if trainer.log is not None:
        trainer.log.close()
        scores = trainer.scores if outcome is Outcome.FINISHED else {"signal": trainer.agreement.received}
        more = {"unsaved": trainer.unsaved, "skipped": sorted(trainer.state.skipped)}
        more = {name: value for name, value in more.items() if value}
        run.record(outcome.value, step=trainer.saver.safe, seconds=clock.summary(), **scores, **more)
        if trainer.unsaved:
            show(f"stopped; {trainer.unsaved}", lasting=True)
    flush()
    if trainer.unsaved:
        sys.exit(1)
    return outcome


def main(args: list[str] | None = None) -> None:
    """The command line.  Exit code 0 also after a signal, when all is saved; 2 if the user can mend what is wrong."""
    clock = Clock(started=psutil.Process().create_time())
    parser = config_parser("vit.train", "Trains a Vision Transformer, or goes on where its run was.")
    parser.add_argument("--run-dir", type=Path, help="run folder (default: runs/ and the config's name)")
    parser.add_argument(
        "--override-resume", nargs="+", default=[], metavar="SETTING", help="settings that may differ on resuming"
    )
    cfg, options = parse_config(parser, args)
    run = RunFolder(options.run_dir or Path("runs", Path(str(options.config[-1])).stem))
    end_with_parent()
    clock.heart = Heartbeat(run.logs)
    rank = int(os.environ.get("RANK", "0"))
    patience = PATIENCE_SECONDS if JOB_VARIABLE in os.environ else 0
    try:
        with run.owned(patience) if rank == 0 else nullcontext(), join(cfg) as world:
            attempt(cfg, run, world, clock, options.override_resume)
    except InUseError as error:
        sys.exit(_told(error, rank, os.EX_TEMPFAIL if patience else 2))  # a job may find it free later
    except Exception as error:
        if run.path.exists():
            run.record("failed", rank=rank, error=f"{type(error).__name__}: {error}", seconds=clock.summary())
        if not isinstance(error, (ValueError, FloatingPointError, DamagedDataError)):
            raise
        sys.exit(_told(error, 0 if isinstance(error, DamagedDataError) else rank))  # one rank alone knows of damage


def _told(error: Exception, rank: int, code: int = 2) -> int:
    """Tells a person, once, what they can mend; the exit code for that."""
    if rank == 0:
        print(f"vit.train: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
