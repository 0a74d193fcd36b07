"""The root cause of an attempt that failed, from what its ranks left behind."""

import time
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from jobs.node.diagnosis import diagnose
from jobs.node.peers import Peers
from jobs.node.restart_policy import RetryLimits, decide
from jobs.node.watchdog import Watchdog
from vit.run.folder import RunFolder
from vit.run.heartbeat import HeartbeatSlots

PEERS = Peers(1, 0, "here", "localhost", "1.0")


def test_an_error_of_the_user_on_one_rank_is_not_hidden_by_the_ranks_that_lost_it(tmp_path: Path) -> None:
    """Such as a full GPU.  The others may end before it, with other errors; another try would fail the same way."""
    run, started = RunFolder(tmp_path), time.time() - 1
    run.record("failed", rank=3, error="GpuMemoryError: micro_batch 512 does not fit; use 256")
    run.record("failed", rank=0, error="RuntimeError: the batch of another rank is missing")
    codes = {0: 1, 1: 1, 2: -9, 3: 2}
    failures = {rank: ProcessFailure(rank, 1, code, error_file="") for rank, code in codes.items()}
    watchdog = Watchdog(HeartbeatSlots(4), PEERS, 0, 60, tmp_path)
    failure = diagnose(run, ChildFailedError("vit.train", failures), watchdog, started)
    assert (failure.kind, failure.rank, failure.reason) == ("user", 3, "micro_batch 512 does not fit; use 256")
    decision = decide(run.events(), failure, RetryLimits(), start_id="1.0", in_slurm=True)
    assert decision.what == "give up"
