"""Looks whether a node is fit to train on, before its ranks start; what is wrong with it is one line of JSON.

python -m vit.node_check --run-dir runs/vit_b16 --ranks 4
"""

import ctypes
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
from vit.config.schema import Config
from vit.data.storage import free_memory
from vit.model.vision_transformer import VisionTransformer
from vit.run.disk_errors import NO_ROOM
from vit.run.folder import RunFolder

RANK_BYTES = 500e6  # of memory that a rank takes before it holds anything: Python, torch, its threads
SIDE = 1024  # of the matrices whose product is tried
MEET_SECONDS = 120  # for the other nodes to begin; who does not is looked for elsewhere
SEE_SECONDS = 10  # for a file of another node to be there
PAIR_SECONDS = 15  # for a sum over two nodes


class UnfitError(Exception):
    """What is wrong with this node."""


class RequestError(Exception):
    """What no node can give."""


def of_this_node(cfg: Config, run: RunFolder, ranks: int, nodes: int) -> Iterator[str]:
    """What a person should know though the run goes on.  Raises UnfitError or RequestError."""
    devices = _devices(cfg, ranks)
    for device in devices:
        _product(device)
    state = _state_bytes(cfg)
    _memory(cfg, ranks, nodes, state)
    for device in devices:
        _gpu_memory(device, state)
    free = shutil.disk_usage(run.path).free
    if free < (needed := (cfg.checkpoint.keep + 1) * state):
        yield (
            f"{run.path} has {free / 1e9:.1f} GB free, and {cfg.checkpoint.keep} checkpoints and a new one need "
            f"{needed / 1e9:.1f} GB"
        )


def _devices(cfg: Config, ranks: int) -> list[torch.device]:
    """The devices that ranks are to use."""
    if cfg.device == "cpu":
        return [torch.device("cpu")]
    there = torch.cuda.device_count()
    if there < ranks:
        raise UnfitError(f"torch sees {there} GPUs, and {ranks} ranks want one each (--device cpu trains without)")
    return [torch.device("cuda", i) for i in range(ranks)]


def _product(device: torch.device) -> None:
    """A product of matrices of small whole numbers, of which no bit is rounded away, tried by Freivalds's method.

    AB = C is right, but for a chance of one in a thousand, if A(Bx) = Cx for a random x.
    https://doi.org/10.1007/3-540-09526-8_5
    """
    random = np.random.default_rng(os.getpid())
    a, b = (random.integers(-4, 5, (SIDE, SIDE)).astype(np.float32) for _ in range(2))
    x = random.integers(0, 1000, SIDE).astype(np.float64)
    try:
        c = (torch.from_numpy(a).to(device) @ torch.from_numpy(b).to(device)).cpu().numpy()
    except RuntimeError as error:
        raise UnfitError(f"{device} computes nothing: {error}") from None
    if not np.array_equal(c.astype(np.float64) @ x, a.astype(np.float64) @ (b.astype(np.float64) @ x)):
        raise UnfitError(f"{device} computes a wrong product of two matrices")


def _state_bytes(cfg: Config) -> int:
    """What a checkpoint takes: float32 weights, two moments, the average."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in VisionTransformer(cfg.model).parameters())
    return 4 * weights * (4 if cfg.optim.ema_decay else 3)


def _memory(cfg: Config, ranks: int, nodes: int, state: int) -> None:
    """Each node holds its part of the copy that is being saved, and all of the state for each rank without a GPU."""
    copies = 1 / nodes + (ranks if cfg.device == "cpu" else 0)
    batches = cfg.global_batch / nodes * 3 * cfg.model.image_size**2 * (cfg.data.prefetch + 1)
    needed, free, total = ranks * RANK_BYTES + copies * state + batches, free_memory(), psutil.virtual_memory().total
    what = f"the ranks need {needed / 1e9:.1f} GB of memory"
    if needed > total:
        raise RequestError(f"{what}, and {socket.gethostname()} has {total / 1e9:.1f}: fewer ranks a node need less")
    if needed > free:
        raise UnfitError(f"{what}, and {free / 1e9:.1f} of {total / 1e9:.1f} are free for this job")


def _gpu_memory(device: torch.device, state: int) -> None:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if free < max(total / 2, 4 / 3 * state):
            raise UnfitError(f"{device} has {free / 1e9:.1f} of {total / 1e9:.1f} GB free: somebody else is on it")


class Neighbors:
    """The same process on the other nodes of a job, met at a store."""

    def __init__(self, asked: Namespace, folder: Path) -> None:
        """Raises DistError if they are not there in time."""
        self.node, self.nodes, self.folder = asked.node, asked.nodes, folder
        address, _, port = asked.store.rpartition(":")
        wait = datetime.timedelta(seconds=MEET_SECONDS)
        self.store = TCPStore(address, int(port), is_master=self.node == 0, wait_for_workers=False, timeout=wait)
        self.store.set(f"name/{self.node}", asked.name)
        self.names = [self.store.get(f"name/{node}").decode() for node in range(self.nodes)]
        self.others = [node for node in range(self.nodes) if node != self.node]

    def unseen(self) -> list[str]:
        """The nodes whose file in the run folder is not there from here, though they wrote it."""
        word = os.urandom(8).hex()
        mine = self.folder / f"{self.names[self.node]}-{word}"
        with suppress(OSError):
            mine.write_text(word)
        self.store.set(f"file/{self.node}", mine.name)
        missing = {node: self.folder / self.store.get(f"file/{node}").decode() for node in self.others}
        deadline = time.monotonic() + SEE_SECONDS
        while missing and time.monotonic() < deadline:
            missing = {node: path for node, path in missing.items() if not _reads(path)}
            time.sleep(0.05 if missing else 0)
        self._all_here("seen")
        with suppress(OSError):
            mine.unlink()
        return [self.names[node] for node in missing]

    def unheard(self) -> list[str]:
        """The nodes with which a sum over the two of us cannot be made, or is wrong; all pairs, each by itself."""
        out = []
        for i, pairs in enumerate(rounds(self.nodes)):
            for pair in pairs:
                if self.node in pair and not self._sum(pair):
                    out.append(self.names[pair[pair[0] == self.node]])
            self._all_here(f"round/{i}")  # who had to wait for a sick one is not late for the next
        return out

    def leave(self) -> None:
        """The first node, which keeps the store, goes last."""
        self.store.set(f"left/{self.node}", "")
        if self.node == 0:
            self.store.wait([f"left/{node}" for node in self.others])

    def _sum(self, pair: tuple[int, int]) -> bool:
        wait, numbers = datetime.timedelta(seconds=PAIR_SECONDS), torch.arange(250_000, dtype=torch.int32)
        try:
            group = ProcessGroupGloo(PrefixStore(f"{pair}", self.store), pair.index(self.node), 2, wait)
            total = numbers * (self.node + 1)
            group.allreduce([total]).wait()  # type: ignore[attr-defined]
        except RuntimeError:
            return False
        return torch.equal(total, numbers * (pair[0] + pair[1] + 2))

    def _all_here(self, where: str) -> None:
        self.store.set(f"{where}/{self.node}", "")
        self.store.wait([f"{where}/{node}" for node in range(self.nodes)])


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Every pair of nodes once, in rounds in which none is in two pairs: the circle method of tournaments."""
    circle = list(range(nodes + nodes % 2))
    out = []
    for _ in range(len(circle) - 1):
        pairs = zip(circle[: len(circle) // 2], reversed(circle), strict=False)
        out.append([(min(p), max(p)) for p in pairs if max(p) < nodes])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return out


def _reads(path: Path) -> bool:
    try:
        return path.read_text() == path.name.rpartition("-")[2]
    except OSError:
        return False


def _writes(folder: Path) -> None:
    """Raises UnfitError if nothing can be written there.  A full disk is no reason not to train."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"try-{os.getpid()}-{os.urandom(4).hex()}"
        file.write_text("try")
        file.unlink()
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise UnfitError(f"nothing can be written in {folder.parent}: {error.strerror}") from None


def look(asked: Namespace) -> dict[str, object]:
    """All checks; `unfit` and `request` say what is wrong, `unseen` and `unheard` which nodes this one misses."""
    out: dict[str, object] = {"node": asked.name, "notes": []}
    run = RunFolder(asked.run_dir)
    folder = run.path / "health"
    try:
        _writes(folder)
        out["notes"] = list(of_this_node(load_config(run.config), run, asked.ranks, asked.nodes))
    except UnfitError as error:
        out["unfit"] = str(error)
    except RequestError as error:
        out["request"] = str(error)
    if asked.nodes > 1:
        with suppress(DistError):  # a node that does not come at all is the supervisors' business
            neighbors = Neighbors(asked, folder)
            out["unseen"] = neighbors.unseen()
            out["unheard"] = neighbors.unheard()
            neighbors.leave()
    return out


def main(args: list[str] | None = None) -> None:
    """The command line."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parser = ArgumentParser("vit.node_check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True, help="run folder, with its config")
    parser.add_argument("--ranks", type=int, required=True, help="ranks of this node")
    parser.add_argument("--name", default=socket.gethostname(), help="this node's name")
    parser.add_argument("--node", type=int, default=0, help="this node's number")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the job")
    parser.add_argument("--store", default="localhost:0", help="where the nodes meet: HOST:PORT of the first one")
    asked, begun = parser.parse_args(args), time.monotonic()
    torch.set_num_threads(1)
    found = look(asked)
    print(json.dumps(found | {"seconds": round(time.monotonic() - begun, 3)}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # threads of a group whose other side is gone may wait for it


if __name__ == "__main__":
    main()
