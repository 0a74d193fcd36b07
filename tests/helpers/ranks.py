"""Real ranks for tests: processes with torchrun's environment, and what their function returned."""

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

# Ranks are forks of a server that has imported all they need and done nothing with it.  A fork of the test process
# would inherit autograd's threads, which do not survive it, and the locks that other threads held at that moment.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "torchvision", "pytest", "PIL.Image", "vit.train"])


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
    """What `function(*args)` returned on each of `world_size` ranks, in their order.

    The function belongs to a module, so that it can be pickled.  Its processes have RANK, WORLD_SIZE, LOCAL_RANK,
    LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT set: `join(cfg)` and `init_process_group("gloo")` work in them.  A
    rank that is killed by a signal has its negative number in place of a result.  The first exception of a rank is
    raised here, with its traceback as a note; ranks that are left then, or at the timeout (seconds; TimeoutError), are
    killed.
    """
    # The store lives here and not in rank 0: no other process can take the port between its choice and its use.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[Any] = []
    pipes: dict[Any, int] = {}
    results: list[Any] = [None] * world_size
    try:
        for rank in range(world_size):
            ours, theirs = Pipe(duplex=False)
            process = _CONTEXT.Process(target=_be_rank, args=(rank, world_size, store.port, theirs, function, args))
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
                results[rank] = _answer(pipe, processes[rank], rank)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def _answer(pipe: Any, process: Any, rank: int) -> Any:
    """A rank's result or its negative signal number."""
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        if process.exitcode < 0:
            return process.exitcode
        raise RuntimeError(f"rank {rank} left with exit code {process.exitcode} and no result") from None
    if error is not None:
        raise error
    process.join()
    return result


def _be_rank(rank: int, size: int, port: int, pipe: Connection, function: Callable[..., Any], args: Any) -> None:
    """Runs the function and sends what came of it."""
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    try:
        # Plain pickle: multiprocessing's would pass tensors as shared memory that ends with this process.
        answer = pickle.dumps((function(*args), None))
    except BaseException as error:
        answer = _pickled(error, f"in rank {rank} of {size}:\n{traceback.format_exc()}")
    pipe.send_bytes(answer)
    sys.stdout.flush()
    sys.stderr.flush()
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
