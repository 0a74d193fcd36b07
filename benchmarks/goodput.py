"""Goodput of a run with random faults: its steps/s divided by its steps/s without faults, for recovery.py."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from benchmarks.cluster_run import Run, timed
from tests.helpers.waiting import wait_for

BLOCKS = 5  # parts of the whole time, each with a time without and a time with faults
FAULT_FREE_SECONDS, FAULT_INTERVAL = 90, 180  # per block; mean time between faults in seconds


def goodput(run: Run, minutes: float) -> dict[str, float]:
    """Measures steps/s with a fault every three minutes on average, and without faults; also counts the restarts."""
    run.submit()
    run.wait_for_step(1)
    generator = random.Random(0)
    fault_free = with_faults = 0.0  # steps/s
    restarts = 0
    for block in range(1, BLOCKS + 1):
        fault_free += steps_per_second(run, lambda: time.sleep(FAULT_FREE_SECONDS)) / BLOCKS
        with_faults += steps_per_second(run, lambda: inject_faults(run, 60 * minutes / BLOCKS, generator)) / BLOCKS
        restarts = len(run.events("started")) - 1
        print(f"block {block} of {BLOCKS}: {restarts} restarts, goodput {with_faults / fault_free:.3f}", flush=True)
    run.cluster.call("scancel", run.job)
    return {
        "steps_per_s": fault_free,
        "steps_per_s_faults": with_faults,
        "restarts": restarts,
        "goodput_faults": with_faults / fault_free,
    }


def steps_per_second(run: Run, action: Callable[[], None]) -> float:
    """New steps per second while `action` runs."""
    steps = run.steps()
    seconds = timed(action)
    return (run.steps() - steps) / seconds


def inject_faults(run: Run, seconds: float, generator: random.Random) -> None:
    """Injects faults for `seconds`, then waits until the run is past the step where the last fault hit it."""
    start, furthest = time.monotonic(), run.steps()
    while (wait := generator.expovariate(1 / FAULT_INTERVAL)) < (left := start + seconds - time.monotonic()):
        time.sleep(wait)
        furthest = max(furthest, run.steps())
        with suppress(IndexError, psutil.Error):  # there may be no ranks at this moment
            inject_fault(run, generator.choice(["kill", "stop", "requeue", "save and requeue"]), generator)
    time.sleep(max(0.0, left))
    wait_for(lambda: run.steps() > furthest, "a new step", 300)


def inject_fault(run: Run, fault: str, generator: random.Random) -> None:
    """Injects one fault: kills or stops a random rank, or requeues the job."""
    if fault in {"kill", "stop"}:
        generator.choice(run.ranks()).send_signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    elif fault == "requeue":
        run.cluster.call("scontrol", "requeue", run.job, check=False)
    else:
        run.cluster.call("scancel", "--signal", "USR2", run.job, check=False)
