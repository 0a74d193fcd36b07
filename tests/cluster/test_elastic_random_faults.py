"""Random faults for minutes in a run of several sizes, while GPUs become free and are taken again."""

import random
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest

from tests.cluster.test_elastic_campaign import (
    SIZES,
    checkout,
    elastic,
    kill_all,
    kill_supervisor,
    lose_node,
    make_room,
    occupy,
    restart_controller,
)
from tests.helpers.cluster_case import campaign
from tests.helpers.elastic_case import ElasticCase

__all__ = ["checkout", "elastic"]  # fixtures

SECONDS = 300
SECONDS_BETWEEN_FAULTS = 20  # on average


@campaign
@pytest.mark.timeout(1800)
def test_random_faults_lead_to_no_second_owner_and_change_no_bit(
    elastic: ElasticCase,
    reference_weights: bytes,
) -> None:
    """The faults hit the job that trains; between them other users take GPUs, and leave again."""
    generator = random.Random(0)
    occupy(elastic, free=2)
    elastic.start(*SIZES, "--max-restarts", "9", "--max-requeues", "9")

    def owner() -> str:
        return max(elastic.run.path.glob("owners/??????.json")).read_text().split('"job": "')[1].partition('"')[0]

    def take_or_leave() -> None:
        make_room(elastic)
        with suppress(AssertionError):  # GPUs of the run itself are not taken
            occupy(elastic, free=generator.choice((1, 2, 4)))

    faults: list[Callable[[], object]] = [
        lambda: generator.choice(elastic.ranks()).kill(),
        lambda: kill_supervisor(elastic, owner()),
        lambda: kill_all(elastic, owner()),
        lambda: elastic.slurm.call("scontrol", "requeue", owner(), check=False),
        lambda: elastic.slurm.call("scancel", "--signal", "USR2", owner(), check=False),
        lambda: restart_controller(elastic, ""),
        lambda: lose_node(elastic, owner()),
        elastic.preempt,
        take_or_leave,
        take_or_leave,
    ]
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not elastic.run.finished():
        for fault in generator.sample(faults, len(faults)):
            time.sleep(generator.expovariate(1 / SECONDS_BETWEEN_FAULTS))
            if elastic.run.finished():
                break
            with suppress(IndexError, KeyError, AssertionError, psutil.NoSuchProcess):
                fault()
    make_room(elastic)
    elastic.finish(600)
    assert len(elastic.start_steps()) > 2
    assert elastic.weights() == reference_weights
