"""A full disk in the run folder costs checkpoints, but does not end the run."""

import time
from contextlib import suppress
from pathlib import Path

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.disks import tmpfs_mounted


def fill(file: Path) -> None:
    """Writes until the disk is full."""
    with suppress(OSError), file.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))


@campaign
def test_a_full_disk_in_the_run_folder_costs_only_checkpoints(case: Case, reference_weights: bytes) -> None:
    """No log and no ledger can be written either for a while: the ranks continue to train."""
    case.run.path.mkdir(parents=True)
    with tmpfs_mounted(case.run.path, "64m"):
        case.start("--gpus", "2", "--checkpoint.every_minutes", "0.005")
        full = case.run.path / "full"
        (rank, *_) = case.ranks()
        rank.suspend()
        fill(full)
        for _ in range(6):
            rank.resume()
            time.sleep(0.05)
            rank.suspend()
            time.sleep(0.5)
        full.unlink()
        rank.resume()
        case.finish()
        assert case.events("checkpoint failed")
        assert case.start_steps() == [0]
        assert case.weights() == reference_weights


@campaign
def test_a_disk_that_is_too_full_for_submitit_does_not_end_the_run(case: Case, reference_weights: bytes) -> None:
    """At the time limit submitit writes the job again before it requeues it; without room the job requeues itself."""
    case.run.jobs.mkdir(parents=True)
    with tmpfs_mounted(case.run.jobs, "1m"):
        case.start("--gpus", "2")
        with case.slowed():
            full = case.run.jobs / "full"
            fill(full)
            case.slurm.call("scancel", "--signal", "USR2", case.job)
            case.wait_until(lambda: case.events("stopped"), "the save")
            case.wait_until(lambda: case.slurm.state(case.job) == "PENDING", "the requeue", 60)
            full.unlink()
        case.finish()
        assert case.start_steps() == [0, case.stop_step()]
        assert case.weights() == reference_weights
