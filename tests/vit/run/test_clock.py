"""The seconds of an attempt are assigned to phases, and each change of phase is a heartbeat."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vit.run.clock import Clock


def test_the_phases_add_up_to_the_duration_of_the_attempt() -> None:
    """Phases, waiting times and the remainder add up to the time since the process started."""
    clock = Clock(started=time.time() - 10)  # the process started ten seconds ago
    clock.add("start", 4)
    begin = time.perf_counter()
    with clock.phase("step"):
        time.sleep(0.05)
    with suppress(KeyError), clock.phase("step"):
        time.sleep(0.05)
        raise KeyError  # the time of a block that raises counts as well

    def slow() -> Iterator[int]:
        for i in range(3):
            time.sleep(0.02)
            yield i

    for _ in clock.timed_iterator("data", slow()):
        time.sleep(0.03)  # not part of the phase
    elapsed = time.perf_counter() - begin
    summary = clock.summary()
    assert list(summary) == ["start", "step", "data", "other"]
    assert sum(summary.values()) == pytest.approx(time.time() - clock.started, abs=0.02)
    assert summary["start"] == 4
    assert 0.1 <= summary["step"] < elapsed
    assert 0.06 <= summary["data"] < elapsed - 0.1 - 0.09 + 0.001
    assert summary["other"] >= 6 + 0.09 - 0.001


def test_the_time_of_a_nested_phase_counts_once() -> None:
    """After it, the outer phase continues, in the sums and in the heartbeats."""
    heartbeat = RecordedHeartbeat()
    clock = Clock(time.time(), heartbeat)  # type: ignore[arg-type]
    with clock.phase("evaluate"):
        time.sleep(0.03)
        with clock.phase("checkpoint"):
            time.sleep(0.05)
        time.sleep(0.03)
    assert heartbeat.phases == ["evaluate", "checkpoint", "evaluate", "other"]
    assert 0.05 <= clock.seconds["checkpoint"] < 0.1
    assert 0.06 <= clock.seconds["evaluate"] < 0.11


def test_the_start_of_a_process_is_known_to_a_hundredth_of_a_second() -> None:
    """The time before the first line of a program belongs to its start."""
    program = "from vit.run.clock import process_start; print(process_start())"
    for _ in range(3):
        before = time.time()
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert before - 0.02 <= float(out.stdout) <= before + 0.15


class RecordedHeartbeat:
    """Records the phases that a clock reports."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def beat(self, phase: str) -> None:
        self.phases.append(phase)


def test_a_timed_iterator_yields_every_item() -> None:
    """Or none, if the source is empty."""
    assert list(Clock(time.time()).timed_iterator("data", iter("abc"))) == ["a", "b", "c"]
    assert list(Clock(time.time()).timed_iterator("data", [])) == []
