"""torch's elastic agent with warm ranks: it meets those of the other nodes, numbers the ranks, and starts them."""

import os
import signal
from collections.abc import Sequence
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    Worker,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from jobs.node import forkserver
from jobs.node.watchdog import Watch

MODULE = "vit.train"
MEETING_SECONDS = 600  # for all nodes to begin an attempt
LOOK_SECONDS = 0.1


class Agent(SimpleElasticAgent):
    """One attempt's, on one node.  It ends with the first rank that fails; who starts again is up to the supervisor."""

    def __init__(self, spec: WorkerSpec, arguments: Sequence[str], watch: Watch) -> None:
        super().__init__(spec)
        self.arguments, self.watch = arguments, watch
        self._ranks: dict[int, forkserver.Process] = {}  # by global rank

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for worker in worker_group.workers:
            log = self.watch.logs / f"rank-{worker.global_rank}.log"
            place = self._environment(worker_group, worker)
            self._ranks[worker.global_rank] = forkserver.start(MODULE, self.arguments, place, log)
        return {worker.local_rank: self._ranks[worker.global_rank].kernel.pid for worker in worker_group.workers}

    def _environment(self, group: WorkerGroup, worker: Worker) -> dict[str, str]:
        """What torchrun tells a rank of its place."""
        place: dict[str, Any] = {
            "RANK": worker.global_rank,
            "LOCAL_RANK": worker.local_rank,
            "GROUP_RANK": group.group_rank,
            "WORLD_SIZE": worker.world_size,
            "LOCAL_WORLD_SIZE": group.spec.local_world_size,
            "GROUP_WORLD_SIZE": group.group_world_size,
            "MASTER_ADDR": group.master_addr,
            "MASTER_PORT": group.master_port,
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCHELASTIC_MAX_RESTARTS": 0,
            "TORCHELASTIC_RUN_ID": group.spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": group.spec.rdzv_handler.use_agent_store,
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }
        return {name: str(value) for name, value in place.items()}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {
            rank: process.exit_code if rank not in self.watch.stuck else -signal.SIGKILL
            for rank, process in self._ranks.items()
        }
        failures = {
            worker.global_rank: ProcessFailure(worker.local_rank, worker.id, code, error_file="")
            for worker in worker_group.workers
            if (code := codes[worker.global_rank])
        }
        if failures:
            return RunResult(WorkerState.FAILED, failures=failures)
        if any(code is None for code in codes.values()):
            return RunResult(WorkerState.HEALTHY)
        return RunResult(WorkerState.SUCCEEDED, return_values=codes)

    def _stop_workers(self, *_: Any, **__: Any) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        forkserver.end([p for rank, p in self._ranks.items() if rank not in self.watch.stuck], death_sig, timeout)

    def _exit_barrier(self) -> None:
        """The other nodes' ranks are waited for by `Team.all_done`, where signals are heard."""


def launch(
    arguments: Sequence[str], watch: Watch, *, ranks: int, nodes: int, run_id: str, endpoint: str, host: bool
) -> None:
    """Runs this node's ranks until they leave by themselves.  Raises ChildFailedError, RendezvousError."""
    parameters = RendezvousParameters(
        "c10d", endpoint, run_id, min_nodes=nodes, max_nodes=nodes, is_host=host, timeout=MEETING_SECONDS
    )
    handler = rendezvous.get_rendezvous_handler(parameters)
    try:
        result = Agent(
            WorkerSpec("ranks", ranks, handler, entrypoint=MODULE, max_restarts=0, monitor_interval=LOOK_SECONDS),
            arguments,
            watch,
        ).run()
    finally:
        handler.shutdown()
    if result is not None and result.is_failed():
        raise ChildFailedError(MODULE, result.failures)
