"""Has a node looked over before its ranks start, by `vit.health`, beside what must be waited for anyway."""

import json
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import slurm
from jobs.budget import Failure
from vit.ledger import RunFolder

PATIENCE_SECONDS = 180  # with a check that does not end, as on a GPU that hangs

Word = dict[str, Any]  # what `vit.health` found on a node


class Check:
    """The check of this node, which begins at once."""

    def __init__(self, run: Path, ranks: int, nodes: int) -> None:
        self.folder = RunFolder(run)
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        # Below the ports that the kernel hands out, and another one than the supervisors'.
        port = 10_000 + zlib.crc32(f"{run} {slurm.life()} health".encode()) % 20_000
        place = ["--node", str(slurm.task()), "--nodes", str(nodes), "--store", f"{slurm.first_address()}:{port}"]
        command = [sys.executable, "-m", "vit.health", "--run-dir", str(run), "--name", slurm.node(), *place]
        self._log = self.folder.logs / f"health-{slurm.node()}.log"
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--ranks", str(ranks)], stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._deadline = time.monotonic() + PATIENCE_SECONDS

    def word(self) -> str:
        """What was found, as one line of JSON; waits for it."""
        try:
            said, _ = self._process.communicate(timeout=max(1, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return json.dumps({"node": slurm.node(), "unfit": f"its health check stood still for {PATIENCE_SECONDS} s"})
        if self._process.returncode == 0:
            return said.splitlines()[-1]
        tail = self._log.read_text(errors="replace").splitlines()[-1:]
        why = f"its health check ended with exit code {self._process.returncode}: {''.join(tail)}"
        return json.dumps({"node": slurm.node(), "unfit": why})


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
