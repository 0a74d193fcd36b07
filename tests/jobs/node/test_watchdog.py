"""Signs of life: read by another process, cheap, gone with their reader; and stacks on demand."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from jobs.node.diagnosis import from_ranks
from jobs.node.elastic_agent import Agent
from jobs.node.forkserver import Process
from jobs.node.peers import Team
from jobs.node.watchdog import Watch, process_state
from tests.helpers.paths import ROOT
from vit.run.folder import RunFolder
from vit.run.heartbeat import VARIABLE, Heartbeat, Sign, Slots

TEAM = Team(1, 0, "here", "localhost", "life")

RANK = """
import sys, time
from pathlib import Path
from vit.run.heartbeat import Heartbeat
heart = Heartbeat(Path(sys.argv[1]))
def train_step():
    time.sleep(float(sys.argv[3]))
for i in range(int(sys.argv[2])):
    heart.sign("step")
    time.sleep(0.02)
heart.sign(sys.argv[4])
train_step()
"""

# A supervisor's watch in a process of its own, with two ranks that step on and on.
PAUSED = """
import sys, time
from pathlib import Path
from jobs.node import watchdog as watch
from tests.jobs.node.test_watchdog import TEAM, rank, until
from vit.run.heartbeat import Slots
watch.PAUSE_SECONDS = 1
slots, logs = Slots(2), Path(sys.argv[1])
ranks = [rank(slots, logs, i, steps=10**6) for i in range(2)]
watching = watch.Watch(slots, TEAM, 0, 2, logs)
watching.start()
until(lambda: len(slots.read()) == 2 and all(s.steps > 9 for s in slots.read()))
print("stepping", flush=True)
time.sleep(7)
by = watching.stalled or watching.ended or "nobody"
print(f"ended by: {by}, longest step below 1 s: {watching._longest['step'] < 1}", flush=True)
watching.stop()
for process in ranks:
    process.kill()
"""


@pytest.fixture
def slots() -> Slots:
    return Slots(2)


@pytest.fixture
def started(slots: Slots, tmp_path: Path) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Two ranks that take three steps and then stay in a long fourth one."""
    ranks = [rank(slots, tmp_path, i) for i in range(2)]
    until(lambda: len(slots.read()) == 2 and all(s.steps == 4 for s in slots.read()))
    yield ranks
    for process in ranks:
        process.kill()
        process.wait()


def rank(slots: Slots, logs: Path, number: int, last: str = "step", steps: int = 3) -> "subprocess.Popen[bytes]":
    place = {VARIABLE: slots.name, "RANK": str(10 + number), "LOCAL_RANK": str(number)}
    command = [sys.executable, "-c", RANK, str(logs), str(steps), "60", last]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | place)


def until(condition: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def watched(slots: Slots, logs: Path, stall_seconds: float, seconds: float = 20) -> Watch:
    """A watch that has ended the ranks."""
    watch = Watch(slots, TEAM, 0, stall_seconds, logs)
    watch.start()
    watch.join(seconds)
    assert not watch.is_alive()
    return watch


def test_what_ranks_do_is_seen_from_outside(slots: Slots, started: "list[subprocess.Popen[bytes]]") -> None:
    """Who they are, what they do, for how long, and how many steps they began."""
    for i, sign in enumerate(slots.read()):
        assert (sign.rank, sign.pid, sign.phase, sign.steps) == (10 + i, started[i].pid, "step", 4)
        assert 0 < time.monotonic() - sign.since < 30
    slots.clear()
    assert slots.read() == []


def test_a_sign_costs_no_step_anything(slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Microseconds: a thousandth of a step of ten milliseconds has room for the four that it gives."""
    monkeypatch.setenv(VARIABLE, slots.name)
    monkeypatch.setenv("LOCAL_RANK", "0")
    heart, best = Heartbeat(tmp_path), 1.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            heart.sign("step")
        best = min(best, (time.perf_counter() - begun) / 100)
    assert best < 2.5e-6


def test_a_sign_is_read_whole_or_not_at_all(slots: Slots, tmp_path: Path) -> None:
    """While a rank writes the next one all the time: none goes back, or is of another time or rank."""
    place = {VARIABLE: slots.name, "RANK": "7", "LOCAL_RANK": "1"}
    program = "import sys; from pathlib import Path; from vit.run.heartbeat import Heartbeat; "
    program += "heart = Heartbeat(Path(sys.argv[1]))\nwhile True: heart.sign('step')"
    begun = before = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=os.environ | place)
    try:
        until(slots.read)
        deadline, signs = time.monotonic() + 3, 0
        while time.monotonic() < deadline:
            (sign,) = slots.read()
            assert (sign.rank, sign.pid) == (7, process.pid)
            assert sign.since >= before >= begun
            assert sign.signs >= signs
            before, signs = sign.since, sign.signs
    finally:
        process.kill()
        process.wait()
    assert signs > 10_000


def test_a_slot_that_is_half_written_counts_as_what_it_was(slots: Slots, tmp_path: Path) -> None:
    """Its rank may be stopped just there."""
    process = rank(slots, tmp_path, 1)
    try:
        until(lambda: slots.read() and slots.read()[0].steps == 4)
        (whole,) = slots.read()
        slots._memory[64:80] = bytes(16)
        assert slots.read() == [whole]
    finally:
        process.kill()
        process.wait()


def test_a_rank_that_nobody_watches_signs_into_the_air(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun, or by hand: no file, no folder."""
    monkeypatch.delenv(VARIABLE, raising=False)
    Heartbeat(tmp_path / "nowhere").sign("step")


def test_ranks_that_stand_still_are_ended_and_leave_their_stacks(
    slots: Slots, started: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    """All of them: the others only wait for the one.  Each file says what its rank was doing."""
    watch = watched(slots, tmp_path, stall_seconds=1)
    assert watch.stalled is not None
    assert "stood still for" in watch.stalled[1]
    assert "'step'" in watch.stalled[1]
    assert [p.wait(5) for p in started] == [-signal.SIGKILL] * 2
    for name in ("rank-10.stacks", "rank-11.stacks"):
        assert "in train_step" in (tmp_path / name).read_text()


def test_of_ranks_that_stand_still_a_stopped_one_is_to_blame(
    slots: Slots, started: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    """It cannot write its stacks down; it is killed with the others."""
    started[1].send_signal(signal.SIGSTOP)
    watch = watched(slots, tmp_path, stall_seconds=1)
    assert watch.stalled is not None
    assert watch.stalled[0].rank == 11
    assert "was stopped by SIGSTOP" in watch.stalled[1]
    assert [p.wait(5) for p in started] == [-signal.SIGKILL] * 2


def test_a_rank_that_dies_takes_the_others_along(
    slots: Slots, started: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    """After a moment for last words; a rank that waits for a dead one by NCCL would wait for minutes."""
    started[0].kill()
    started[0].wait()
    watch = watched(slots, tmp_path, stall_seconds=600)
    assert watch.stalled is None
    assert watch.ended == {11}
    assert "in train_step" in (tmp_path / "rank-11.stacks").read_text()


def test_a_rank_that_has_done_its_work_may_leave(slots: Slots, tmp_path: Path) -> None:
    """Before the others, which may have more to write down."""
    ranks = [rank(slots, tmp_path, 0), rank(slots, tmp_path, 1, last="leave")]
    try:
        until(lambda: len(signs := slots.read()) == 2 and signs[1].phase == "leave")
        watch = Watch(slots, TEAM, 0, 600, tmp_path)
        watch.start()
        ranks[1].kill()
        ranks[1].wait()
        time.sleep(1)
        assert watch.is_alive()
        assert process_state(ranks[0].pid)
        watch.stop()
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_a_pause_of_the_whole_job_is_no_stall(slots: Slots, tmp_path: Path) -> None:
    """`scontrol suspend`: everything is stopped for longer than any patience, and goes on; time did not count."""
    program = [sys.executable, "-c", PAUSED, str(tmp_path)]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE) as watcher:
        job = psutil.Process(watcher.pid)
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == b"stepping\n"
        for process in (everything := [job, *job.children(recursive=True)]):
            process.suspend()
        time.sleep(4)
        for process in everything:
            process.resume()
        assert watcher.stdout.readline() == b"ended by: nobody, longest step below 1 s: True\n"


def test_ranks_that_nothing_ends_are_told(
    slots: Slots, started: "list[subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a driver that does not answer: the kernel keeps them; the node is sick, and nobody waits for them."""
    stuck = started[1].pid
    monkeypatch.setattr(
        "jobs.node.watchdog.process_state", lambda pid: "disk-sleep" if pid == stuck else process_state(pid)
    )
    monkeypatch.setattr("jobs.node.watchdog.GONE_SECONDS", 0.5)
    watch = watched(slots, tmp_path, stall_seconds=1)
    assert watch.stuck == {11}
    agent = Agent.__new__(Agent)
    agent.watch, agent._ranks = watch, {11: Process(mock.Mock(exitcode=None), mock.Mock())}
    group = mock.Mock(workers=[mock.Mock(global_rank=11, local_rank=1)])
    result = agent._monitor_workers(group)
    assert result.failures[11].exitcode == -signal.SIGKILL
    agent._shutdown()
    failure = from_ranks(RunFolder(tmp_path), ChildFailedError("vit.train", result.failures), watch, time.time())
    assert (failure.kind, failure.rank) == ("sick", 11)
    assert "does not end by SIGKILL" in failure.told()


def test_a_rank_that_finds_the_run_folder_taken_is_not_to_blame(slots: Slots, tmp_path: Path) -> None:
    """It may be free later, unlike what an exit code without a word means."""
    watch = Watch(slots, TEAM, 0, 60, tmp_path)
    for code, kind in ((1, "exception"), (os.EX_TEMPFAIL, "echo")):
        left = {0: ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="")}
        failure = from_ranks(RunFolder(tmp_path), ChildFailedError("vit.train", left), watch, time.time())
        assert (failure.kind, failure.rank, failure.reason) == (kind, 0, f"ended with exit code {code}")


def test_patience_grows_with_the_longest_step_and_is_great_for_what_is_seldom(slots: Slots, tmp_path: Path) -> None:
    """Ten times what was seen; ten times the given seconds for starting, saving, evaluating and the first steps."""
    watch = Watch(slots, TEAM, 0, 60, tmp_path)
    sign = slots_sign(phase="step", steps=9, signs=1, since=0.0)
    assert watch.patience(sign) == 60
    watch._learn([sign])
    watch._learn([slots_sign(phase="other", steps=9, signs=2, since=30.0)])
    assert watch.patience(sign) == 300
    assert watch.patience(slots_sign(phase="data", steps=9, signs=3, since=30.0)) == 60
    for phase, steps in (("start", 0), ("step", 1), ("evaluate", 9), ("checkpoint", 9)):
        assert watch.patience(slots_sign(phase=phase, steps=steps, signs=3, since=30.0)) == 600


def slots_sign(phase: str, steps: int, signs: int, since: float) -> Sign:
    return Sign(rank=0, pid=1, phase=phase, steps=steps, signs=signs, since=since)
