"""Runs functions on ranks whose GPUs are null GPUs: forks of a server that runs on it, as those of a job.

The test process itself has no GPU.  It starts `python -m tests.helpers.null_gpu_ranks` on the null GPU once, which
calls `run_ranks` for it.
"""

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from tests.helpers.null_gpu import environment
from tests.helpers.paths import CHECKOUT


class NullGpu:
    """Null GPUs that were built into a folder, and the server of the processes on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        ranks: int = 1,
        timeout: float = 60,
        variables: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Any]:
        """`run_ranks(ranks, function, *args)` with a GPU for each rank, and `variables` in their environment.

        `options` are those of `null_gpu.environment`.
        """
        chosen = environment(self.folder, devices=ranks, **options) | dict(variables or {})
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send_bytes(pickle.dumps((ranks, chosen, function, args, timeout)))
        results, error, note = pickle.loads(self._pipe.recv_bytes())
        if error is not None:
            error.add_note(note)
            raise error
        return list(results)

    def stop(self) -> None:
        """Ends the server."""
        if self._server is not None and self._pipe is not None:
            self._pipe.close()
            self._server.wait(60)

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=CHECKOUT, env=os.environ | environment(self.folder), pass_fds=[theirs.fileno()],
            )  # fmt: skip


def _with_variables(variables: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """In a rank."""
    os.environ.update(variables)
    return function(*args)


def _serve(pipe: Connection) -> None:
    """Runs functions until the other end of the pipe is closed."""
    from tests.helpers import ranks as real_ranks

    real_ranks._CONTEXT.set_forkserver_preload([*real_ranks.PRELOADED, "jobs.node.forkserver_compiler"])
    while True:
        try:
            ranks, variables, function, args, timeout = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = (
                real_ranks.run_ranks(ranks, _with_variables, variables, function, args, timeout=timeout),
                None,
                "",
            )
        except Exception as error:
            answer = (None, error, "".join(traceback.format_exception(error)))
        pipe.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
