"""Has a node looked over before its ranks start, by `vit.node_check`, beside what must be waited for anyway."""

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
from vit.run.folder import RunFolder

PATIENCE_SECONDS = 180  # with a check that does not end, as on a GPU that hangs

Word = dict[str, Any]  # what `vit.node_check` found on a node


class Check:
    """The check of this node, which begins at once."""

    def __init__(self, run: Path, ranks: int, nodes: int) -> None:
        self._log = RunFolder(run).logs / f"health-{slurm_job.node()}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Below the ports that the kernel hands out, and another one than the supervisors'.
        port = 10_000 + zlib.crc32(f"{run} {slurm_job.life()} health".encode()) % 20_000
        place = [
            "--node",
            str(slurm_job.task()),
            "--nodes",
            str(nodes),
            "--store",
            f"{slurm_job.first_address()}:{port}",
        ]
        arguments = ["--run-dir", str(run), "--name", slurm_job.node(), "--ranks", str(ranks), *place]
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self._cold = ""
        try:
            self._process, self._said = forkserver.ask("vit.node_check", arguments, self._log, PATIENCE_SECONDS)
        except forkserver.ColdError as error:
            self._cold = str(error)

    def word(self) -> str:
        """What was found, as one line of JSON; waits for it."""
        if self._cold:
            return json.dumps({"node": slurm_job.node(), "unfit": self._cold})
        said = b""
        while self._said.poll(max(0, self._deadline - time.monotonic())):
            if not (more := os.read(self._said.fileno(), 1 << 16)):
                break
            said += more
        else:
            forkserver.end([self._process], signal.SIGKILL, 0)
            return json.dumps(
                {"node": slurm_job.node(), "unfit": f"its health check stood still for {PATIENCE_SECONDS} s"}
            )
        if (code := self._process.wait()) == 0:
            return said.decode().splitlines()[-1]
        tail = self._log.read_text(errors="replace").splitlines()[-1:]
        why = f"its health check ended with exit code {code}: {''.join(tail)}"
        return json.dumps({"node": slurm_job.node(), "unfit": why})


def failures(words: Sequence[Word]) -> list[Failure]:
    """What is wrong, by what all nodes found: nothing, one thing that no node can give, or one for each sick node."""
    for word in words:
        if "request" in word:
            return [_failure("user", word["node"], word["request"])]
    sick = {word["node"]: word["unfit"] for word in words if "unfit" in word}
    missed: dict[str, str] = {}  # pairs of well nodes that miss each other, and how
    blamed: Counter[str] = Counter()
    for word in words:
        for how, told in (("unseen", "do not see the same run folder"), ("unheard", "do not hear each other")):
            for other in word.get(how, ()):
                if not {word["node"], other} & sick.keys():
                    pair = sorted((word["node"], other))
                    missed[" and ".join(pair)] = told
                    blamed.update(pair)
    if missed:
        # Which of the two it is, where there are no more, nobody knows: it is taken to be that which came second.
        order = [word["node"] for word in words]
        worst = max(blamed, key=lambda node: (blamed[node], order.index(node) if node in order else -1))
        sick[worst] = "; ".join(f"{pair} {told}" for pair, told in missed.items())
    return [_failure("sick", node, why) for node, why in sick.items()]


def _failure(kind: Any, node: str, why: str) -> Failure:
    return Failure(kind=kind, node=node, rank=-1, reason=f"{node} is not fit for this run: {why}", time=time.time())
