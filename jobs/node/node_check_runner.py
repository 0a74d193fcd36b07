"""Runs the node health check, `vit.node_check`, on a node before its ranks start, while modules are imported."""

import json
import os
import signal
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.node import forkserver, slurm_job
from jobs.node.restart_policy import Failure
from vit.config.paths import escape
from vit.run.folder import RunFolder

TIMEOUT_SECONDS = 180  # of a check that does not end, for example on a GPU that hangs

CheckResult = dict[str, Any]  # what `vit.node_check` found on a node
# How `vit.node_check` reports that a node cannot reach another one, and what that means.
UNREACHABLE = {"unseen": "do not see the same run folder", "unheard": "cannot communicate with each other"}


class NodeHealthCheck:
    """The health check of this node.  It starts at once, in a process of its own."""

    def __init__(self, run: Path, ranks: int, nodes: int) -> None:
        self._log = RunFolder(run).logs / f"health-{slurm_job.node_name()}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Below the kernel's ephemeral ports, and different from the supervisors' port.
        port = 10_000 + zlib.crc32(f"{run} {slurm_job.start_id()} health".encode()) % 20_000
        store = f"{slurm_job.first_address()}:{port}"
        arguments = ["--run-dir", escape(run), "--name", slurm_job.node_name(), "--ranks", str(ranks)]
        arguments += ["--node", str(slurm_job.node_rank()), "--nodes", str(nodes), "--store", store]
        self._deadline = time.monotonic() + TIMEOUT_SECONDS
        self._start_error = ""
        try:
            self._process, self._stdout = forkserver.start_with_pipe(
                "vit.node_check", arguments, self._log, TIMEOUT_SECONDS
            )
        except forkserver.StartError as error:
            self._start_error = str(error)

    def result(self) -> str:
        """Waits for the check to end; returns its result as one line of JSON."""
        if self._start_error:
            return _unfit(self._start_error)
        output = b""
        while self._stdout.poll(max(0, self._deadline - time.monotonic())):
            if not (more := os.read(self._stdout.fileno(), 1 << 16)):
                break
            output += more
        else:
            forkserver.stop_processes([self._process], signal.SIGKILL, 0)
            return _unfit(f"the check did not end within {TIMEOUT_SECONDS} s")
        if (code := self._process.wait()) == 0:
            return output.decode().splitlines()[-1]
        tail = self._log.read_text(errors="replace").splitlines()[-1:]
        return _unfit(f"the check ended with exit code {code}: {''.join(tail)}")


def failures(results: Sequence[CheckResult]) -> list[Failure]:
    """Failures found by the checks of all nodes: none, one request that no node can meet, or one per unhealthy node."""
    for result in results:
        if "request" in result:
            return [_failure("user", result["node"], result["request"])]
    unhealthy = {result["node"]: result["unfit"] for result in results if "unfit" in result}
    pairs: dict[str, str] = {}  # of healthy nodes that cannot reach each other, and why
    count: Counter[str] = Counter()  # of these pairs, for each node
    for result in results:
        for key, why in UNREACHABLE.items():
            for other in result.get(key, ()):
                if not {result["node"], other} & unhealthy.keys():
                    pair = sorted((result["node"], other))
                    pairs[" and ".join(pair)] = why
                    count.update(pair)
    if pairs:
        # Of two nodes it is not known which one is unhealthy: the later one is assumed to be.
        order = [result["node"] for result in results]
        worst = max(count, key=lambda node: (count[node], order.index(node) if node in order else -1))
        unhealthy[worst] = "; ".join(f"{pair} {why}" for pair, why in pairs.items())
    return [_failure("unhealthy", node, why) for node, why in unhealthy.items()]


def _unfit(why: str) -> str:
    return json.dumps({"node": slurm_job.node_name(), "unfit": why})


def _failure(kind: Any, node: str, why: str) -> Failure:
    reason = f"{node} failed the node health check: {why}"
    return Failure(kind=kind, node=node, rank=-1, reason=reason, time=time.time())
