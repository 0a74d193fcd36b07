"""Decisions of all ranks, and signals."""

import os
import signal
import time

import pytest

from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.distributed.stop_signals import Agreement
from vit.distributed.world import SINGLE_RANK, join_process_group


def decisions(requests: list[tuple[int, int]], calls: int) -> list[tuple[bool, bool]]:
    """The results of `calls` exchanges; rank r requests a save in call i for each (r, i) of `requests`."""
    with join_process_group(Config(device="cpu")) as world:
        agreement = Agreement(world)
        out = [agreement.exchange(save=(world.rank, i) in requests)[:2] for i in range(calls)]
        agreement.close()
        return out


def test_all_ranks_save_at_the_same_step_and_once() -> None:
    """Rank 2 requests a save until the decision arrives, one step later."""
    save, nothing = (False, True), (False, False)
    expected = [nothing, nothing, save, nothing, nothing, nothing, save, nothing]
    assert run_ranks(4, decisions, [(2, 1), (2, 2), (2, 5)], 8) == [expected] * 4


def interrupt_twice(pause_seconds: float) -> str:
    agreement = Agreement(SINGLE_RANK)
    agreement.install_signal_handlers()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause_seconds)
    assert agreement.exchange().stop
    return "stops at the next step"


def test_a_second_ctrl_c_exits_at_once() -> None:
    """But a Ctrl-C that arrives twice within a moment counts as one."""
    assert run_ranks(1, interrupt_twice, 0.1) == ["stops at the next step"]
    with pytest.raises(RuntimeError, match="exit code 130"):
        run_ranks(1, interrupt_twice, 2.2)
