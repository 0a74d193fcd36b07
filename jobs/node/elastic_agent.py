"""torch's elastic agent, starting ranks from the fork server: rendezvous of the nodes, rank numbers, start."""

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
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from jobs.node import forkserver, network
from jobs.node.one_node_rendezvous import OneNodeRendezvous
from jobs.node.watchdog import Watchdog

MODULE = "vit.train"
RENDEZVOUS_SECONDS = 600  # timeout for all nodes to begin an attempt
MONITOR_SECONDS = 0.1  # between two looks at the ranks


class RanksFailedError(ChildFailedError):
    """Some ranks of this node failed: `failures`, by rank."""

    def format_msg(self, *_: Any, **__: Any) -> str:
        """Short: torch's message has this machine's name, which takes seconds if the name service does not respond."""
        return f"ranks {', '.join(map(str, sorted(self.failures)))} failed"


class Agent(SimpleElasticAgent):
    """The agent of one attempt on one node.  It ends when the first rank fails; restarts are up to the supervisor."""

    def __init__(self, spec: WorkerSpec, arguments: Sequence[str], watchdog: Watchdog) -> None:
        super().__init__(spec)
        self.arguments, self.watchdog = arguments, watchdog
        self._ranks: dict[int, forkserver.Process] = {}  # by global rank

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for worker in worker_group.workers:
            log = self.watchdog.logs / f"rank-{worker.global_rank}.log"
            environment = self._environment(worker_group, worker)
            self._ranks[worker.global_rank] = forkserver.start(MODULE, self.arguments, environment, log)
        return {worker.local_rank: self._ranks[worker.global_rank].os_process.pid for worker in worker_group.workers}

    def _environment(self, group: WorkerGroup, worker: Worker) -> dict[str, str]:
        """The variables that torchrun sets for a rank."""
        variables: dict[str, Any] = {
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
        return {name: str(value) for name, value in variables.items()}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        codes = {
            rank: process.exit_code if rank not in self.watchdog.unkillable else -signal.SIGKILL
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

    def _construct_event(self, state: str, source: EventSource, *_: Any, **__: Any) -> Event:
        """Without this machine's name, as above; torch discards these events."""
        return Event(f"torchelastic.worker.status.{state}", source=source)

    def _stop_workers(self, *_: Any, **__: Any) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        killable = [process for rank, process in self._ranks.items() if rank not in self.watchdog.unkillable]
        forkserver.stop_processes(killable, death_sig, timeout)

    def _exit_barrier(self) -> None:
        """Not used: `Peers.all_finished` waits for the other nodes' ranks and can be interrupted by signals."""


def launch(
    arguments: Sequence[str], watchdog: Watchdog, *, ranks: int, nodes: int, run_id: str, endpoint: str, host: bool
) -> None:
    """Runs this node's ranks until they exit.

    Raises RanksFailedError if one failed, RendezvousError, UserError if the ranks of one node cannot communicate.
    """
    if nodes == 1:
        handler: RendezvousHandler = OneNodeRendezvous(run_id, ranks)
    else:
        parameters = RendezvousParameters(
            "c10d", endpoint, run_id, min_nodes=nodes, max_nodes=nodes, is_host=host, timeout=RENDEZVOUS_SECONDS,
            local_addr=network.choose(endpoint.rpartition(":")[0]) or None,
        )  # fmt: skip
        handler = rendezvous.get_rendezvous_handler(parameters)
    try:
        result = Agent(
            WorkerSpec("ranks", ranks, handler, entrypoint=MODULE, max_restarts=0, monitor_interval=MONITOR_SECONDS),
            arguments,
            watchdog,
        ).run()
    finally:
        handler.shutdown()
    if result is not None and result.is_failed():
        raise RanksFailedError(MODULE, result.failures)
