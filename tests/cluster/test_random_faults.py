"""Random faults for ten minutes, of all kinds that the other tests inject one at a time."""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.helpers.cluster_case import Case, campaign
from vit.run.folder import RunFolder

SECONDS = 600
SECONDS_BETWEEN_FAULTS = 20  # on average


@campaign
@pytest.mark.timeout(1800)
def test_random_faults_change_no_bit(case: Case, tmp_path: Path) -> None:
    """On two nodes: whatever the faults hit, the run ends with the bits of a run without faults."""
    longer = ("--gpus", "1", "--epochs", "100", "--checkpoint.every_minutes", "0.005")
    generator = random.Random(0)
    case.start(*longer, "--nodes", "2", "--stall-seconds", "5", "--max-same-step", "9", "--max-restarts", "9")

    def kill_and_restart_node() -> None:
        node = generator.choice(["n1", "n2"])
        case.slurm.kill_node(node)
        case.slurm.restart(f"slurmd-{node}")

    faults: list[Callable[[], object]] = [
        lambda: generator.choice(case.ranks()).kill(),
        lambda: generator.choice(case.ranks()).suspend(),
        lambda: generator.choice(case.supervisors()).kill(),
        lambda: case.slurm.call("scontrol", "requeue", case.job, check=False),
        lambda: case.slurm.call("scancel", "--signal", "USR2", case.job, check=False),
        lambda: case.slurm.call("scancel", "--signal", "TERM", case.job, check=False),
        lambda: case.slurm.restart("slurmctld"),
        lambda: case.slurm.restart("slurmdbd"),
        kill_and_restart_node,
        case.preempt,
    ]
    deadline = time.monotonic() + SECONDS
    with case.slowed(seconds=1):
        while time.monotonic() < deadline and not case.run.finished():
            for fault in generator.sample(faults, len(faults)):  # each once, in random order
                time.sleep(generator.expovariate(1 / SECONDS_BETWEEN_FAULTS))
                with suppress(IndexError, psutil.NoSuchProcess):
                    fault()
    case.finish(600)
    alone = replace(case, run=RunFolder(tmp_path / "runs" / "alone"))
    assert alone.submit(*longer, "--nodes", "2").returncode == 0
    alone.finish()
    assert len(case.start_steps()) > 3
    assert case.events("restarting in place")
    assert case.weights(100 * 8) == alone.weights(100 * 8)
