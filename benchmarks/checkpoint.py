"""What a save costs: how long training stands still, how long the write takes, how much it slows the steps beside it.

python benchmarks/checkpoint.py [--quick] [--folder DIR]

The state is a ViT-B/16's: weights, two moments of AdamW and averaged weights, 1.385 GB (--quick: of 3 blocks, 364 MB),
the same on two ranks of one thread each, as DDP has it.  Ours copies and writes half of it on each rank, and so do the
bare copy and the bare write; dcp.async_save stages all of it on each, and torch.save writes all of it on rank 0.  The
sides take turns, into files that are not there yet and into memory that was used before; the slower rank counts, and of
the turns the fastest, with the median beside it.  The last line is one JSON object with all figures.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from vit.checkpoint.saver import Saver
from vit.checkpoint.train_state import TrainState
from vit.config.schema import CheckpointConfig, Config
from vit.distributed.world import join
from vit.run.folder import RunFolder

RANKS = 2
SIDES = {
    "memcpy": "copy of the same bytes",
    "ours": "ours, if the weights changed at once",
    "beside": "ours, beside a forward and backward pass",
    "dcp": "dcp.async_save: training stands still",
    "torch": "torch.save",
    "write": "ours: until it is safe",
    "raw": "write and fsync of the same bytes",
}


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Sides:
    """One state, and every way to save it."""

    def __init__(self, saver: Saver, state: TrainState, folder: Path) -> None:
        self.saver, self.state, self.folder, self.rank, self.turn = saver, state, folder, saver.world.rank, 0
        self.mine = torch.rand(saver.snapshot.size // 4)  # as many bytes as this rank writes
        self.copy, self.image = torch.zeros_like(self.mine), torch.rand(2, 3, 224, 224)

    def fresh(self, name: str) -> Path:
        """A place that is not there yet, on a disk that has nothing left to do; the ranks begin together."""
        self.turn += 1
        if self.rank == 0:
            os.sync()
        dist.barrier()
        return self.folder / f"{name}-{self.turn}"

    def turns(self, count: int) -> list[dict[str, float]]:
        """Seconds of each side in each turn, of the slower rank; one turn before them warms up."""
        return [self._slowest(self.measure()) for _ in range(1 + count)][1:]

    def measure(self) -> dict[str, float]:
        """One turn of each side on this rank, in seconds."""
        self.fresh("copy")
        out = {"memcpy": timed(lambda: self.copy.copy_(self.mine))}
        out["ours"], out["write"] = self.ours(lambda: None)
        out["beside"], _ = self.ours(self.forward_and_backward)
        out["dcp"] = self.dcp()
        path = self.fresh("torch")
        out["torch"] = timed(lambda: torch.save(self.state.tensors(), path)) if self.rank == 0 else 0.0
        path.unlink(missing_ok=True)
        out["raw"] = self.raw()
        return out

    def forward_and_backward(self) -> None:
        """What a rank does between a save and the next change of the weights, if only for two images."""
        self.state.model(self.image).sum().backward()

    def ours(self, before_update: Callable[[], None]) -> tuple[float, float]:
        """Seconds of standing still, and until the checkpoint is safe."""
        self.fresh("ours")
        self.state.step += 1
        start = time.perf_counter()
        still = timed(self.saver.save)
        before_update()
        still += timed(self.saver.protect)
        self.saver.advance(0)
        while self.saver.written < self.saver.begun:
            time.sleep(0.001)
            self.saver.writer.poll()
        dist.barrier()
        still += timed(lambda: self.saver.advance(self.saver.begun))
        while self.saver.undecided:
            time.sleep(0.001)
            self.saver.writer.poll()
        taken = time.perf_counter() - start
        self.saver.settle()
        return still, taken

    def dcp(self) -> float:
        """Seconds until `dcp.async_save` returns; what it does in its thread is waited for outside."""
        path = self.fresh("dcp")
        start = time.perf_counter()
        future = dcp.async_save(self.state.tensors(), checkpoint_id=path)
        still = time.perf_counter() - start
        future.result()
        dist.barrier()
        shutil.rmtree(path, ignore_errors=True)
        return still

    def raw(self) -> float:
        """Seconds to write the same bytes and have them on the disk."""
        path, data = self.fresh(f"raw-{self.rank}"), memoryview(self.mine.numpy()).cast("B")
        start = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            while data:
                data = data[os.write(file.fileno(), data) :]
            os.fsync(file.fileno())
        taken = time.perf_counter() - start
        path.unlink()
        return taken

    def _slowest(self, mine: dict[str, float]) -> dict[str, float]:
        all_ranks: list[dict[str, float]] = [{}] * RANKS
        dist.all_gather_object(all_ranks, mine)
        return {side: max(rank[side] for rank in all_ranks) for side in mine}


def slowed(saver: Saver, state: TrainState, seconds: float, rounds: int) -> float:
    """Seconds that training loses to one save, with its write and its reading back: the median of `rounds`.

    Steps are products of matrices, on one core; as many are timed beside a save as are timed just before, without one.
    The other core is the writer's, as nodes with GPUs have cores to spare.
    """
    a, lost = torch.randn(512, 512), []
    step: Callable[[], Any] = lambda: a @ a  # noqa: E731
    count = int(seconds / min(timed(step) for _ in range(50)))

    def run() -> None:
        for _ in range(count):
            step()
            saver.advance(saver.written)

    for _ in range(rounds):
        os.sync()
        alone = timed(run)
        state.step += 1
        lost.append(timed(lambda: (saver.save(), run())) - alone)
        saver.settle()
    return statistics.median(lost)


def work(cfg: Config, folder: Path, quick: bool) -> None:
    """What one rank does; rank 0, or the only one, writes down its figures."""
    with join(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        run = RunFolder(folder / f"run-{world.size}")
        run.path.mkdir(exist_ok=True)
        saver = Saver(run, world, CheckpointConfig(keep=1), state, dict, set)
        found: dict[str, Any] = {}
        if world.size == RANKS:
            turns = Sides(saver, state, folder).turns(2 if quick else 8)
            for name, choose in (("least", min), ("median", statistics.median)):
                found[name] = {side: choose(turn[side] for turn in turns) for side in SIDES}
            found["bytes"] = sum(entry["bytes"] for entry in saver.layout.values())
        else:
            found["lost"] = slowed(saver, state, 1.0 if quick else 8.0, 3 if quick else 9)
        if world.rank == 0:
            (folder / f"found-{world.size}.json").write_text(json.dumps(found))
        saver.close()


def compare(folder: Path, quick: bool) -> dict[str, Any]:
    """All figures."""
    found: dict[str, Any] = {}
    for ranks in (RANKS, 1):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        options = ["--work", "--folder", str(folder), *(["--quick"] if quick else [])]
        subprocess.run([*launch, __file__, *options], check=True, env=environment)
        found |= json.loads((folder / f"found-{ranks}.json").read_text())
    least, lost = found["least"], found["lost"]
    return {
        "bytes": found["bytes"],
        "ranks": RANKS,
        "least_ms": {side: round(1e3 * seconds, 2) for side, seconds in least.items()},
        "median_ms": {side: round(1e3 * seconds, 2) for side, seconds in found["median"].items()},
        "stall_vs_memcpy": round(least["ours"] / least["memcpy"], 3),
        "stall_vs_dcp": round(least["beside"] / least["dcp"], 3),
        "stall_vs_torch_save": round(least["beside"] / least["torch"], 3),
        "write_vs_raw": round(least["write"] / least["raw"], 3),
        "lost_ms_per_save": round(1e3 * lost, 1),
        "overhead_per_minute": round(lost / 60, 5),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Prints a table, and as the last line one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under 50 seconds, a quarter of the bytes")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: where temporary files go)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        cfg = Config(device="cpu")
        cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0.9999))
        if options.quick:
            cfg = replace(cfg, model=replace(cfg.model, depth=3))
        work(cfg, options.folder, options.quick)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = compare(Path(folder), options.quick)
    print(f"{figures['bytes'] / 1e6:,.0f} MB {'':<37}{'least ms':>10}{'median ms':>12}")
    for side, name in SIDES.items():
        print(f"{name:<45}{figures['least_ms'][side]:>10,.1f}{figures['median_ms'][side]:>12,.1f}")
    lost, share = figures["lost_ms_per_save"], figures["overhead_per_minute"]
    print(f"a save costs training {lost:,.0f} ms in all; one a minute costs {share:.2%}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
