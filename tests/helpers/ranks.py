"""Runs a function on real ranks: processes with torchrun's environment variables."""

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch
from torch.distributed import TCPStore

# Ranks are forks of a server that has only imported what they need.  A fork of the test process would inherit the state
# of autograd's threads, which a fork does not have, and locks held by other threads.
_CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["torch", "torch._dynamo", "torchvision", "pytest", "PIL.Image", "vit.train"]
_CONTEXT.set_forkserver_preload(PRELOADED)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """Runs `function(*args)` on `world_size` ranks; returns their results in rank order.

    The function must be at module level, so that it can be pickled.  Its processes have RANK, WORLD_SIZE, LOCAL_RANK,
    LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: `join_process_group(cfg)` and
    `init_process_group("gloo")` work in them.  The result of a rank killed by a signal is the negative signal number.
    The first exception of a rank is raised here, with its traceback as a note.  The other ranks are then killed, as are
    all ranks at the timeout (seconds), which raises TimeoutError.
    """
    # The store is in this process, not in rank 0, so that no other process can take the port before it is used.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[Any] = []
    pipes: dict[Any, int] = {}
    results: list[Any] = [None] * world_size
    try:
        for rank in range(world_size):
            ours, theirs = Pipe(duplex=False)
            process = _CONTEXT.Process(target=_run_rank, args=(rank, world_size, store.port, theirs, function, args))
            process.start()
            theirs.close()
            processes.append(process)
            pipes[ours] = rank
        deadline = time.monotonic() + timeout
        while pipes:
            ready = wait(list(pipes), timeout=max(0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(pipes.values())} did not return within {timeout} s")
            for pipe in ready:
                rank = pipes.pop(pipe)
                results[rank] = _result(pipe, processes[rank], rank)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def _result(pipe: Any, process: Any, rank: int) -> Any:
    """The result of a rank, or its negative signal number."""
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        if process.exitcode < 0:
            return process.exitcode
        raise RuntimeError(f"rank {rank} ended with exit code {process.exitcode} and no result") from None
    if error is not None:
        raise error
    process.join()
    return result


def _run_rank(rank: int, size: int, port: int, pipe: Connection, function: Callable[..., Any], args: Any) -> None:
    """Runs the function, and sends its result or exception."""
    variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    try:
        # Plain pickle: multiprocessing would pass tensors as shared memory, which ends with this process.
        answer = pickle.dumps((function(*args), None))
    except BaseException as error:
        answer = _pickled(error, f"in rank {rank} of {size}:\n{traceback.format_exc()}")
    pipe.send_bytes(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _pickled(error: BaseException, note: str) -> bytes:
    """The exception itself if it can be pickled, else a RuntimeError with its name and message."""
    error.add_note(note)
    try:
        answer = pickle.dumps((None, error))
        assert type(pickle.loads(answer)[1]) is type(error)
    except Exception:
        replacement = RuntimeError(f"{type(error).__name__}: {error}")
        replacement.add_note(note)
        return pickle.dumps((None, replacement))
    return answer
