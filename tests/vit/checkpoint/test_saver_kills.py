"""What becomes of a save when its processes are killed or receive signals."""

import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import psutil

from tests.helpers.ranks import run_ranks
from tests.helpers.savers import events, saved_steps, saver_on_rank
from tests.helpers.waiting import wait_for
from vit.checkpoint.format import find_checkpoints, step_of
from vit.distributed.stop_signals import Agreement
from vit.run.folder import RunFolder


def kill_writers(run: Path) -> list[int | None]:
    """Kills rank 1's writer during a write, and rank 0's, which then cannot commit; returns the saved steps."""
    saved = []
    with saver_on_rank(run) as (state, saver):
        for step, victim in ((1, 1), (2, None), (3, 0), (4, None)):
            state.train(step)
            if saver.world.rank == victim:
                assert saver.writer.pid is not None
                os.kill(saver.writer.pid, signal.SIGSTOP)
                saver.save()
                os.kill(saver.writer.pid, signal.SIGKILL)
            saver.save()
            saved.append(saver.finish())
    return saved


def test_a_killed_writer_is_reported_and_restarted(tmp_path: Path) -> None:
    """On any rank; that save fails, training continues, and the next save succeeds."""
    assert run_ranks(2, kill_writers, tmp_path) == [[None, 2, 2, 4]] * 2
    failed = events(tmp_path, "checkpoint failed")
    assert [(e["step"], e["safe"]) for e in failed] == [(1, None), (3, 2)]
    assert {e["error"] for e in failed} == {"the checkpoint writer was killed by SIGKILL"}
    assert saved_steps(tmp_path) == [4, 2]


def save_until_killed(run: Path, delay: float) -> None:
    """Saves in a loop; each rank is killed by SIGKILL `delay` seconds after the first save."""
    try:
        checkpoints = find_checkpoints(RunFolder(run).checkpoints)
        saved_step = step_of(checkpoints[0]) if checkpoints else None
        first = (saved_step or 0) + 1
        with saver_on_rank(run, 30_000, saved_step=saved_step) as (state, saver):
            (run / f"writer-{saver.world.rank}").write_text(str(saver.writer.pid))
            for step in itertools.count(first):
                state.train(step)
                saver.save()
                with (run / f"saved-{saver.world.rank}").open("a") as file:
                    file.write(f"{saver.finish()}\n")
                if step == first:
                    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    except RuntimeError:
        time.sleep(60)  # the other rank was killed first


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_kill_during_a_save_loses_no_checkpoint(tmp_path: Path) -> None:
    """8 SIGKILLs of two ranks at random times: what was reported as saved is intact, and the writers are gone."""
    delays = random.Random(1)
    for i in range(8):
        assert run_ranks(2, save_until_killed, tmp_path, delays.uniform(0, 0.1)) == [-signal.SIGKILL] * 2
        writers = [int(path.read_text()) for path in tmp_path.glob("writer-*")]
        wait_for(lambda: not any(is_running(pid) for pid in writers), "the end of the writers", 5)  # noqa: B023
        saved = max(int(word) for path in tmp_path.glob("saved-*") for word in path.read_text().split())
        assert saved_steps(tmp_path)[0] in (saved, saved + 1), i


def signal_process_group(run: Path) -> int | None:
    """Sends every stop signal to this rank and its writer during a save; then saves and leaves."""
    os.setpgid(0, 0)
    with saver_on_rank(run, 2_000_000) as (state, saver):
        agreement, pid = Agreement(saver.world), saver.writer.pid
        agreement.install_signal_handlers()
        state.train(1)
        saver.save()
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.killpg(0, number)
        state.train(2)
        assert agreement.exchange().stop
        assert saver.save_before_exit() is None
        assert saver.writer.pid == pid
        return saver.saved_step


def test_stop_signals_to_the_process_group_do_not_interrupt_a_save(tmp_path: Path) -> None:
    """The save in progress is committed, and then the save of the step at which the rank stops."""
    assert run_ranks(1, signal_process_group, tmp_path) == [2]
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == [1, 2]
    assert saved_steps(tmp_path) == [2, 1]
