"""Heartbeats in memory that two processes share: their cost, and what the reader sees."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import CHECKOUT
from tests.helpers.waiting import wait_for
from tests.jobs.node.test_watchdog import start_rank
from vit.run.heartbeat import HEARTBEAT_VARIABLE, Heartbeat, HeartbeatSlots


@pytest.fixture
def slots() -> HeartbeatSlots:
    return HeartbeatSlots(2)


def test_heartbeats_cost_less_than_a_thousandth_of_a_step(
    slots: HeartbeatSlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of ten milliseconds has four heartbeats, of 2.5 microseconds each at most."""
    monkeypatch.setenv(HEARTBEAT_VARIABLE, slots.name)
    monkeypatch.setenv("LOCAL_RANK", "0")
    heartbeat, best = Heartbeat(tmp_path), 1.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            heartbeat.beat("step")
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 2.5e-6


def test_a_heartbeat_is_never_read_half_written(slots: HeartbeatSlots, tmp_path: Path) -> None:
    """While a rank writes all the time, no heartbeat is older than the one read before, or of another rank."""
    variables = {HEARTBEAT_VARIABLE: slots.name, "RANK": "7", "LOCAL_RANK": "1"}
    program = "import sys; from pathlib import Path; from vit.run.heartbeat import Heartbeat; "
    program += "heartbeat = Heartbeat(Path(sys.argv[1]))\nwhile True: heartbeat.beat('step')"
    begun = before = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=CHECKOUT, env=os.environ | variables)
    try:
        wait_for(slots.read, "a heartbeat")
        deadline, count = time.monotonic() + 3, 0
        while time.monotonic() < deadline:
            (beat,) = slots.read()
            assert (beat.rank, beat.pid) == (7, process.pid)
            assert beat.since >= before >= begun
            assert beat.count >= count
            before, count = beat.since, beat.count
    finally:
        process.kill()
        process.wait()
    assert count > 10_000


def test_a_slot_that_is_half_written_keeps_its_last_complete_heartbeat(slots: HeartbeatSlots, tmp_path: Path) -> None:
    """Its rank may be stopped while it writes."""
    process = start_rank(slots, tmp_path, 1)
    try:
        wait_for(lambda: slots.read() and slots.read()[0].steps == 4, "the fourth step")
        (complete,) = slots.read()
        slots._memory[64:80] = bytes(16)
        assert slots.read() == [complete]
    finally:
        process.kill()
        process.wait()


def test_without_a_watchdog_heartbeats_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun, or when started by hand: no file, no folder."""
    monkeypatch.delenv(HEARTBEAT_VARIABLE, raising=False)
    Heartbeat(tmp_path / "nowhere").beat("step")
