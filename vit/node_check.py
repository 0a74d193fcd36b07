"""Checks the health of a node before its ranks start, and prints what it found as one line of JSON.

python -m vit.node_check --run-dir runs/vit_b16 --ranks 4
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

import datetime
import json
import os
import shutil
import signal
import socket
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.distributed import DistError, PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from vit.config.parser import load_config
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.data.storage import free_memory
from vit.model.weight_fit import state_bytes
from vit.run.command import run_command
from vit.run.console import started_as
from vit.run.counts import counted
from vit.run.disk_errors import DISK_FULL
from vit.run.folder import RunFolder
from vit.run.parent import end_with_parent

RANK_BYTES = 500e6  # memory of a rank without model and data: Python, torch, threads
MATRIX_SIZE = 1024  # rows and columns of the matrices that are multiplied
RENDEZVOUS_SECONDS = 120  # timeout for the checks of the other nodes to start
FILE_SECONDS = 10  # timeout for a file of another node to become visible
ALLREDUCE_SECONDS = 15  # timeout for an all-reduce between two nodes


class UnhealthyError(Exception):
    """This node is unhealthy.  The message says why."""


class TooLargeError(Exception):
    """The run needs more than any node has.  The message says what, and what to do."""


def check_node(cfg: Config, run: RunFolder, ranks: int, nodes: int) -> Iterator[str]:
    """Checks this node by itself and yields warnings.  Raises UnhealthyError or TooLargeError."""
    devices = _devices(cfg, ranks)
    for device in devices:
        _check_matmul(device)
    state = state_bytes(cfg)
    _check_memory(cfg, ranks, nodes, state)
    for device in devices:
        _check_gpu_memory(device, state)
    free = shutil.disk_usage(run.path).free
    needed = (cfg.checkpoint.keep + 1) * state
    if free < needed:
        yield (
            f"{run.path} has {free / 1e9:.1f} GB free, but {cfg.checkpoint.keep} checkpoints and a new one need "
            f"{needed / 1e9:.1f} GB"
        )


def _devices(cfg: Config, ranks: int) -> list[torch.device]:
    """The devices that the ranks will use.  Raises UnhealthyError if there are too few GPUs."""
    if cfg.device == "cpu":
        return [torch.device("cpu")]
    count = torch.cuda.device_count()
    if count < ranks:
        raise UnhealthyError(
            f"torch sees {counted(count, 'GPU')}, but {ranks} ranks need one each (--device cpu trains without)"
        )
    return [torch.device("cuda", i) for i in range(ranks)]


def _check_matmul(device: torch.device) -> None:
    """Multiplies two matrices of small integers, which needs no rounding, and verifies the product.

    Freivalds' algorithm: if A(Bx) = Cx for a random x, then AB = C, with an error probability of one in a thousand.
    https://doi.org/10.1007/3-540-09526-8_5
    """
    random = np.random.default_rng(os.getpid())
    a, b = (random.integers(-4, 5, (MATRIX_SIZE, MATRIX_SIZE)).astype(np.float32) for _ in range(2))
    x = random.integers(0, 1000, MATRIX_SIZE).astype(np.float64)
    try:
        c = (torch.from_numpy(a).to(device) @ torch.from_numpy(b).to(device)).cpu().numpy()
    except RuntimeError as error:
        raise UnhealthyError(f"{device} cannot multiply matrices: {error}") from None
    if not np.array_equal(c.astype(np.float64) @ x, a.astype(np.float64) @ (b.astype(np.float64) @ x)):
        raise UnhealthyError(f"{device} returned a wrong matrix product")


def _check_memory(cfg: Config, ranks: int, nodes: int, state: int) -> None:
    """Main memory: the copy that a save makes, decoded batches, and without GPUs the state of each rank."""
    copies = 1 / nodes + (ranks if cfg.device == "cpu" else 0)
    batches = cfg.global_batch / nodes * 3 * cfg.model.image_size**2 * (cfg.data.prefetch + 1)
    needed, free, total = ranks * RANK_BYTES + copies * state + batches, free_memory(), psutil.virtual_memory().total
    what = f"the ranks need {needed / 1e9:.1f} GB of memory"
    if needed > total:
        raise TooLargeError(f"{what}, but {socket.gethostname()} has {total / 1e9:.1f} GB; use fewer ranks per node")
    if needed > free:
        raise UnhealthyError(f"{what}, but only {free / 1e9:.1f} of {total / 1e9:.1f} GB are free for this job")


def _check_gpu_memory(device: torch.device, state: int) -> None:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if free < max(total / 2, 4 / 3 * state):
            raise UnhealthyError(f"{device} has {free / 1e9:.1f} of {total / 1e9:.1f} GB free: another process uses it")


class NodeGroup:
    """The checks of all nodes of a job, connected by a TCPStore on the first node."""

    def __init__(self, options: Namespace, folder: Path) -> None:
        """Waits for all nodes.  Raises DistError if one does not come in time."""
        self.node, self.nodes, self.folder = options.node, options.nodes, folder
        address, _, port = options.store.rpartition(":")
        timeout = datetime.timedelta(seconds=RENDEZVOUS_SECONDS)
        self.store = TCPStore(address, int(port), is_master=self.node == 0, wait_for_workers=False, timeout=timeout)
        self.store.set(f"name/{self.node}", options.name)
        self.names = [self.store.get(f"name/{node}").decode() for node in range(self.nodes)]
        self.others = [node for node in range(self.nodes) if node != self.node]

    def nodes_without_shared_folder(self) -> list[str]:
        """Each node writes a file to the run folder; returns the nodes whose file this node cannot read."""
        token = os.urandom(8).hex()
        mine = self.folder / f"{self.names[self.node]}-{token}"
        with suppress(OSError):
            mine.write_text(token)
        self.store.set(f"file/{self.node}", mine.name)
        missing = {node: self.folder / self.store.get(f"file/{node}").decode() for node in self.others}
        deadline = time.monotonic() + FILE_SECONDS
        while missing and time.monotonic() < deadline:
            missing = {node: path for node, path in missing.items() if not _is_readable(path)}
            time.sleep(0.05 if missing else 0)
        self._barrier("files-read")
        with suppress(OSError):
            mine.unlink()
        return [self.names[node] for node in missing]

    def nodes_without_network(self) -> list[str]:
        """Runs an all-reduce between each pair of nodes; returns the nodes with which it failed or gave a wrong sum."""
        out = []
        for i, pairs in enumerate(pairing_rounds(self.nodes)):
            for pair in pairs:
                if self.node in pair and not self._all_reduce(pair):
                    out.append(self.names[pair[pair[0] == self.node]])
            self._barrier(f"round/{i}")  # so that a node that waited for an unhealthy one is not late for the next
        return out

    def close(self) -> None:
        """Leaves the group; the first node, which hosts the store, leaves last."""
        self.store.set(f"left/{self.node}", "")
        if self.node == 0:
            self.store.wait([f"left/{node}" for node in self.others])

    def _all_reduce(self, pair: tuple[int, int]) -> bool:
        timeout, numbers = datetime.timedelta(seconds=ALLREDUCE_SECONDS), torch.arange(250_000, dtype=torch.int32)
        try:
            group = ProcessGroupGloo(PrefixStore(f"{pair}", self.store), pair.index(self.node), 2, timeout)
            total = numbers * (self.node + 1)
            group.allreduce([total]).wait()  # type: ignore[attr-defined]
        except RuntimeError:
            return False
        return torch.equal(total, numbers * (pair[0] + pair[1] + 2))

    def _barrier(self, name: str) -> None:
        self.store.set(f"{name}/{self.node}", "")
        self.store.wait([f"{name}/{node}" for node in range(self.nodes)])


def pairing_rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """All pairs of nodes, in rounds in which each node is in at most one pair: the circle method for round-robins."""
    circle = list(range(nodes + nodes % 2))
    out = []
    for _ in range(len(circle) - 1):
        pairs = zip(circle[: len(circle) // 2], reversed(circle), strict=False)
        out.append([(min(p), max(p)) for p in pairs if max(p) < nodes])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return out


def _is_readable(path: Path) -> bool:
    """Whether a file has the contents that its name says."""
    try:
        return path.read_text() == path.name.rpartition("-")[2]
    except OSError:
        return False


def _check_writable(folder: Path) -> None:
    """Raises UnhealthyError if the folder is not writable.  A full disk is not an error: training can continue."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"try-{os.getpid()}-{os.urandom(4).hex()}"
        file.write_text("try")
        file.unlink()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise UnhealthyError(f"cannot write to {folder.parent}: {error.strerror}") from None


def run_checks(options: Namespace) -> dict[str, object]:
    """Runs all checks.  The keys of the result:

    `node`: name of this node.  `notes`: warnings.  `unfit`: why the node is unhealthy.  `request`: what no node has
    enough of.  `unseen`: nodes that do not share the run folder with this one.  `unheard`: nodes that this one cannot
    communicate with.
    """
    out: dict[str, object] = {"node": options.name, "notes": []}
    run = RunFolder(options.run_dir)
    folder = run.path / "health"
    try:
        _check_writable(folder)
        out["notes"] = list(check_node(load_config(run.config), run, options.ranks, options.nodes))
    except UnhealthyError as error:
        out["unfit"] = str(error)
    except TooLargeError as error:
        out["request"] = str(error)
    if options.nodes > 1:
        with suppress(DistError):  # the supervisors handle a node that does not start
            group = NodeGroup(options, folder)
            out["unseen"] = group.nodes_without_shared_folder()
            out["unheard"] = group.nodes_without_network()
            group.close()
    return out


def main(args: list[str] | None = None) -> None:
    """The command line."""
    end_with_parent(signal.SIGKILL)
    parser = ArgumentParser(started_as("vit.node_check"), description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=user_path, required=True, help="run folder, which has the config")
    parser.add_argument("--ranks", type=int, required=True, help="ranks on this node")
    parser.add_argument("--name", default=socket.gethostname(), help="name of this node")
    parser.add_argument("--node", type=int, default=0, help="index of this node in the job")
    parser.add_argument("--nodes", type=int, default=1, help="number of nodes of the job")
    parser.add_argument("--store", default="localhost:0", help="HOST:PORT of the store on the first node")
    options, started = parser.parse_args(args), time.monotonic()
    torch.set_num_threads(1)
    found = run_checks(options)
    print(json.dumps(found | {"seconds": round(time.monotonic() - started, 3)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads of a process group whose peer is gone


if __name__ == "__main__":
    run_command(main)
