"""Real ranks for tests: forked processes with torchrun's environment, and what their function returned."""

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch
from torch.distributed import TCPStore


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """What `function(*args)` returned on each of `world_size` ranks, in their order.

    The ranks are forks of this process, so that a closure will do, with RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT set: `vit.world.join(cfg)` and `init_process_group("gloo")` work in them.  A rank that
    is killed by a signal has its negative number in place of a result.  The first exception of a rank is raised here,
    with its traceback as a note; ranks that are left then, or at the timeout (seconds; TimeoutError), are killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pids: list[int] = []
    pipes: dict[Connection, int] = {}
    results: list[Any] = [None] * world_size
    deadline = time.monotonic() + timeout
    try:
        for rank in range(world_size):
            ours, theirs = Pipe()
            pid = os.fork()
            if pid == 0:
                ours.close()
                _be_rank(rank, world_size, theirs, function, args)
            theirs.close()
            pids.append(pid)
            pipes[ours] = rank
        # The store lives here and not in rank 0: no other process can take the port between its choice and its use.
        # It has a thread, so it begins after the forks: a fork keeps for ever the locks that other threads held.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for pipe in pipes:
            pipe.send(store.port)
        while pipes:
            ready = wait(list(pipes), timeout=max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(pipes.values())} did not return within {timeout} s")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                results[pipes[pipe]] = _answer(pipe, pipes[pipe], pids)
                del pipes[pipe]
                pipe.close()
    finally:
        for pid in filter(None, pids):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for pipe in pipes:
            pipe.close()
    return results


def _answer(pipe: Connection, rank: int, pids: list[int]) -> Any:
    """A rank's result or its negative signal number; its process is waited for."""
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        pid, pids[rank] = pids[rank], 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code < 0:
            return code
        raise RuntimeError(f"rank {rank} left with exit code {code} and no result") from None
    if error is not None:
        raise error
    pid, pids[rank] = pids[rank], 0
    os.waitpid(pid, 0)
    return result


def _be_rank(rank: int, size: int, pipe: Connection, function: Callable[..., Any], args: Any) -> None:
    """Runs the function, sends what came of it, and ends the process."""
    try:
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(pipe.recv()), TORCHELASTIC_USE_AGENT_STORE="True")
        torch.set_num_threads(1)
        try:
            # Plain pickle: multiprocessing's would pass tensors as shared memory that ends with this process.
            answer = pickle.dumps((function(*args), None))
        except BaseException as error:
            answer = _pickled(error, f"in rank {rank} of {size}:\n{traceback.format_exc()}")
        pipe.send_bytes(answer)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _pickled(error: BaseException, note: str) -> bytes:
    """The exception itself where it survives pickling, else a RuntimeError that tells of it."""
    error.add_note(note)
    try:
        answer = pickle.dumps((None, error))
        assert type(pickle.loads(answer)[1]) is type(error)
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.add_note(note)
        return pickle.dumps((None, told))
    return answer
