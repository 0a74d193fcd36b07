"""Heartbeats, which another process reads, and the watchdog, which kills ranks that stall and all others with them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from jobs.node.diagnosis import diagnose
from jobs.node.elastic_agent import Agent
from jobs.node.forkserver import Process
from jobs.node.peers import Peers
from jobs.node.watchdog import Watchdog, process_state
from tests.helpers.paths import CHECKOUT
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder
from vit.run.heartbeat import HEARTBEAT_VARIABLE, Beat, HeartbeatSlots

PEERS = Peers(1, 0, "here", "localhost", "1.0")

RANK = """
import sys, time
from pathlib import Path
from vit.run.heartbeat import Heartbeat
heartbeat = Heartbeat(Path(sys.argv[1]))
def train_step():
    time.sleep(float(sys.argv[3]))
for i in range(int(sys.argv[2])):
    heartbeat.beat("step")
    time.sleep(0.02)
heartbeat.beat(sys.argv[4])
train_step()
"""

# A watchdog in a process of its own, with two ranks that do steps until they are killed.
SUSPENDED_JOB = """
import sys, time
from pathlib import Path
from jobs.node import watchdog as module
from tests.helpers.waiting import wait_for
from tests.jobs.node.test_watchdog import PEERS, start_rank
from vit.run.heartbeat import HeartbeatSlots
module.SUSPENDED_SECONDS = 1
slots, logs = HeartbeatSlots(2), Path(sys.argv[1])
ranks = [start_rank(slots, logs, i, steps=10**6) for i in range(2)]
watchdog = module.Watchdog(slots, PEERS, 0, 2, logs)
watchdog.start()
wait_for(lambda: len(slots.read()) == 2 and all(b.steps > 9 for b in slots.read()), "ten steps")
print("stepping", flush=True)
time.sleep(7)
killed = watchdog.stalled or watchdog.killed or "nobody"
print(f"killed: {killed}, longest step below 1 s: {watchdog._longest['step'] < 1}", flush=True)
watchdog.stop()
for process in ranks:
    process.kill()
"""


@pytest.fixture
def slots() -> HeartbeatSlots:
    return HeartbeatSlots(2)


@pytest.fixture
def ranks(slots: HeartbeatSlots, tmp_path: Path) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Two ranks that do three steps and then stay in a fourth one."""
    ranks = [start_rank(slots, tmp_path, i) for i in range(2)]
    wait_for(lambda: len(slots.read()) == 2 and all(b.steps == 4 for b in slots.read()), "the fourth step")
    yield ranks
    for process in ranks:
        process.kill()
        process.wait()


def start_rank(
    slots: HeartbeatSlots, logs: Path, number: int, last: str = "step", steps: int = 3
) -> "subprocess.Popen[bytes]":
    variables = {HEARTBEAT_VARIABLE: slots.name, "RANK": str(10 + number), "LOCAL_RANK": str(number)}
    command = [sys.executable, "-c", RANK, str(logs), str(steps), "60", last]
    return subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | variables)


def run_watchdog(slots: HeartbeatSlots, logs: Path, stall_seconds: float, seconds: float = 20) -> Watchdog:
    """A watchdog that has killed the ranks."""
    watchdog = Watchdog(slots, PEERS, 0, stall_seconds, logs)
    watchdog.start()
    watchdog.join(seconds)
    assert not watchdog.is_alive()
    return watchdog


def make_beat(phase: str, steps: int, count: int, since: float) -> Beat:
    return Beat(rank=0, pid=1, phase=phase, steps=steps, count=count, since=since)


def test_another_process_sees_what_ranks_do(slots: HeartbeatSlots, ranks: "list[subprocess.Popen[bytes]]") -> None:
    """Their rank, process, phase, the time since it began, and the number of steps they began."""
    for i, beat in enumerate(slots.read()):
        assert (beat.rank, beat.pid, beat.phase, beat.steps) == (10 + i, ranks[i].pid, "step", 4)
        assert 0 < time.monotonic() - beat.since < 30
    slots.clear()
    assert slots.read() == []


def test_the_last_steps_before_a_failure_are_known(
    slots: HeartbeatSlots, ranks: "list[subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that began after the watchdog's last look: the restart policy counts failures at the same step."""
    monkeypatch.setattr("jobs.node.watchdog.POLL_SECONDS", 60)
    watchdog = Watchdog(slots, PEERS, 0, 60, tmp_path)
    watchdog.start()
    watchdog.stop()
    assert [watchdog.beats[rank].steps for rank in (10, 11)] == [4, 4]


def test_stalled_ranks_write_their_stack_traces_and_are_killed(
    slots: HeartbeatSlots, ranks: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    """All of them, because the others wait for the stalled one."""
    watchdog = run_watchdog(slots, tmp_path, stall_seconds=1)
    assert watchdog.stalled is not None
    assert "stalled for" in watchdog.stalled[1]
    assert "'step'" in watchdog.stalled[1]
    assert [p.wait(5) for p in ranks] == [-signal.SIGKILL] * 2
    for name in ("rank-10.stacks", "rank-11.stacks"):
        assert "in train_step" in (tmp_path / name).read_text()


def test_stalled_ranks_on_a_busy_node_are_killed_after_they_have_written_their_stack_traces(
    slots: HeartbeatSlots, ranks: "list[subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get the processor only after three seconds."""
    request = Watchdog._request_stacks

    def request_later(self: Watchdog, beats: Sequence[Beat]) -> float:
        threading.Timer(3, request, (self, beats)).start()
        return 1

    monkeypatch.setattr(Watchdog, "_request_stacks", request_later)
    run_watchdog(slots, tmp_path, stall_seconds=1)
    assert [p.wait(5) for p in ranks] == [-signal.SIGKILL] * 2
    for name in ("rank-10.stacks", "rank-11.stacks"):
        assert "in train_step" in (tmp_path / name).read_text()


def test_of_stalled_ranks_one_stopped_by_sigstop_is_reported(
    slots: HeartbeatSlots, ranks: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    """It is killed with the others."""
    ranks[1].send_signal(signal.SIGSTOP)
    watchdog = run_watchdog(slots, tmp_path, stall_seconds=1)
    assert watchdog.stalled is not None
    assert watchdog.stalled[0].rank == 11
    assert "was stopped by SIGSTOP" in watchdog.stalled[1]
    assert [p.wait(5) for p in ranks] == [-signal.SIGKILL] * 2


def test_when_a_rank_dies_the_others_are_killed(
    slots: HeartbeatSlots, ranks: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    """After a moment to report the error; a rank that waits for a dead one in NCCL would wait for minutes."""
    ranks[0].kill()
    ranks[0].wait()
    watchdog = run_watchdog(slots, tmp_path, stall_seconds=600)
    assert watchdog.stalled is None
    assert watchdog.killed == {11}
    assert "in train_step" in (tmp_path / "rank-11.stacks").read_text()


def test_a_rank_that_has_finished_may_exit_before_the_others(slots: HeartbeatSlots, tmp_path: Path) -> None:
    """The others may have more to write."""
    ranks = [start_rank(slots, tmp_path, 0), start_rank(slots, tmp_path, 1, last="leave")]
    try:
        wait_for(lambda: len(beats := slots.read()) == 2 and beats[1].phase == "leave", "the last phase")
        watchdog = Watchdog(slots, PEERS, 0, 600, tmp_path)
        watchdog.start()
        ranks[1].kill()
        ranks[1].wait()
        time.sleep(1)
        assert watchdog.is_alive()
        assert process_state(ranks[0].pid)
        watchdog.stop()
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_a_suspended_job_is_not_stalled(tmp_path: Path) -> None:
    """`scontrol suspend`: all processes stop for longer than any timeout, and resume; that time does not count."""
    program = [sys.executable, "-c", SUSPENDED_JOB, str(tmp_path)]
    with subprocess.Popen(program, cwd=CHECKOUT, stdout=subprocess.PIPE) as supervisor:
        job = psutil.Process(supervisor.pid)
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"stepping\n"
        for process in (processes := [job, *job.children(recursive=True)]):
            process.suspend()
        time.sleep(4)
        for process in processes:
            process.resume()
        assert supervisor.stdout.readline() == b"killed: nobody, longest step below 1 s: True\n"


def test_ranks_that_sigkill_does_not_end_make_the_node_unhealthy(
    slots: HeartbeatSlots,
    ranks: "list[subprocess.Popen[bytes]]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that does not respond may keep them in the kernel: nothing waits for them."""
    stuck = ranks[1].pid
    monkeypatch.setattr(
        "jobs.node.watchdog.process_state", lambda pid: "disk-sleep" if pid == stuck else process_state(pid)
    )
    monkeypatch.setattr("jobs.node.watchdog.KILL_SECONDS", 0.5)
    watchdog = run_watchdog(slots, tmp_path, stall_seconds=1)
    assert watchdog.unkillable == {11}
    agent = Agent.__new__(Agent)
    agent.watchdog, agent._ranks = watchdog, {11: Process(mock.Mock(exitcode=None), mock.Mock())}
    group = mock.Mock(workers=[mock.Mock(global_rank=11, local_rank=1)])
    result = agent._monitor_workers(group)
    assert result.failures[11].exitcode == -signal.SIGKILL
    agent._shutdown()
    failure = diagnose(RunFolder(tmp_path), ChildFailedError("vit.train", result.failures), watchdog, time.time())
    assert (failure.kind, failure.rank) == ("unhealthy", 11)
    assert "did not end on SIGKILL" in failure.message()


def test_a_rank_that_finds_the_run_folder_in_use_is_a_secondary_failure(slots: HeartbeatSlots, tmp_path: Path) -> None:
    """The folder may be free later; any other exit code without a recorded error counts as an exception."""
    watchdog = Watchdog(slots, PEERS, 0, 60, tmp_path)
    for code, kind in ((1, "exception"), (os.EX_TEMPFAIL, "secondary")):
        failures = {0: ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="")}
        failure = diagnose(RunFolder(tmp_path), ChildFailedError("vit.train", failures), watchdog, time.time())
        assert (failure.kind, failure.rank, failure.reason) == (kind, 0, f"ended with exit code {code}")


def test_the_timeout_grows_with_the_longest_step_and_is_longer_for_rare_phases(
    slots: HeartbeatSlots, tmp_path: Path
) -> None:
    """Ten times the longest so far; ten times `stall_seconds` for starting, saving, evaluating and the first steps."""
    watchdog = Watchdog(slots, PEERS, 0, 60, tmp_path)
    beat = make_beat(phase="step", steps=9, count=1, since=0.0)
    assert watchdog.timeout(beat) == 60
    watchdog._record_phases([beat])
    watchdog._record_phases([make_beat(phase="other", steps=9, count=2, since=30.0)])
    assert watchdog.timeout(beat) == 300
    assert watchdog.timeout(make_beat(phase="data", steps=9, count=3, since=30.0)) == 60
    for phase, steps in (("start", 0), ("step", 1), ("evaluate", 9), ("checkpoint", 9)):
        assert watchdog.timeout(make_beat(phase=phase, steps=steps, count=3, since=30.0)) == 600
