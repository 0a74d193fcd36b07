"""Cost of a checkpoint: how long training stalls, how long the write takes, and how much it slows down other steps.

python benchmarks/checkpoint.py [--quick] [--folder DIR]

The state is that of a ViT-B/16: weights, two moments of AdamW and the EMA of the weights, 1.385 GB (--quick: 3 blocks,
364 MB), replicated on two ranks of one thread each, as in DDP.  Ours copies and writes half of it on each rank, and so
do the plain copy and the plain write; dcp.async_save stages all of it on each rank; torch.save writes all of it on rank
0.  The methods alternate, and write to new files and into memory that was used before.  The slower rank counts.  The
results are the minimum and the median over all rounds.  The last line is one JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

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
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.sections import CheckpointConfig
from vit.distributed.world import join_process_group
from vit.run.command import run_command
from vit.run.folder import RunFolder

RANKS = 2
METHODS = {
    "memcpy": "memory copy of the same bytes",
    "ours": "ours: stall if the weights change at once",
    "beside": "ours: stall with a forward and backward pass",
    "dcp": "dcp.async_save: stall",
    "torch": "torch.save: stall",
    "write": "ours: until the checkpoint is safe",
    "raw": "write and fsync of the same bytes",
}


def timed(function: Callable[[], Any]) -> float:
    """Calls a function and returns the seconds that it took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Methods:
    """One training state, and all the methods to save it."""

    def __init__(self, saver: Saver, state: TrainState, folder: Path) -> None:
        self.saver, self.state, self.folder, self.rank, self.files = saver, state, folder, saver.world.rank, 0
        self.data = torch.rand(saver.snapshot.num_bytes // 4)  # as many bytes as this rank writes
        self.copy, self.images = torch.zeros_like(self.data), torch.rand(2, 3, 224, 224)

    def new_path(self, name: str) -> Path:
        """Waits until the disk is idle and all ranks are here; returns a path that does not exist yet."""
        self.files += 1
        if self.rank == 0:
            os.sync()
        dist.barrier()
        return self.folder / f"{name}-{self.files}"

    def rounds(self, count: int) -> list[dict[str, float]]:
        """Seconds per method of each round, on the slower rank; one more round before them warms up."""
        return [self._slowest(self.measure()) for _ in range(1 + count)][1:]

    def measure(self) -> dict[str, float]:
        """Runs each method once on this rank; returns seconds."""
        self.new_path("copy")
        out = {"memcpy": timed(lambda: self.copy.copy_(self.data))}
        out["ours"], out["write"] = self.ours(lambda: None)
        out["beside"], _ = self.ours(self.forward_and_backward)
        out["dcp"] = self.dcp()
        path = self.new_path("torch")
        out["torch"] = timed(lambda: torch.save(self.state.tensors(), path)) if self.rank == 0 else 0.0
        path.unlink(missing_ok=True)
        out["raw"] = self.raw()
        return out

    def forward_and_backward(self) -> None:
        """What a rank does between a save and the next update of the weights, here with only two images."""
        self.state.model(self.images).sum().backward()

    def ours(self, before_update: Callable[[], None]) -> tuple[float, float]:
        """Seconds that training stalls, and seconds until the checkpoint is safe."""
        self.new_path("ours")
        self.state.step += 1
        start = time.perf_counter()
        stall = timed(self.saver.save)
        before_update()
        stall += timed(self.saver.wait_for_copy)
        self.saver.advance(0)
        while self.saver.parts_written < self.saver.saves_started:
            time.sleep(0.001)
            self.saver.writer.poll()
        dist.barrier()
        stall += timed(lambda: self.saver.advance(self.saver.saves_started))
        while self.saver.pending_commits:
            time.sleep(0.001)
            self.saver.writer.poll()
        taken = time.perf_counter() - start
        self.saver.wait_until_pruned()
        return stall, taken

    def dcp(self) -> float:
        """Seconds until `dcp.async_save` returns, without the work of its thread."""
        path = self.new_path("dcp")
        start = time.perf_counter()
        future = dcp.async_save(self.state.tensors(), checkpoint_id=path)
        stall = time.perf_counter() - start
        future.result()
        dist.barrier()
        shutil.rmtree(path, ignore_errors=True)
        return stall

    def raw(self) -> float:
        """Seconds to write and fsync the same number of bytes."""
        path, data = self.new_path(f"raw-{self.rank}"), memoryview(self.data.numpy()).cast("B")
        start = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            while data:
                data = data[os.write(file.fileno(), data) :]
            os.fsync(file.fileno())
        taken = time.perf_counter() - start
        path.unlink()
        return taken

    def _slowest(self, seconds: dict[str, float]) -> dict[str, float]:
        all_ranks: list[dict[str, float]] = [{}] * RANKS
        dist.all_gather_object(all_ranks, seconds)
        return {method: max(rank[method] for rank in all_ranks) for method in seconds}


def slowdown(saver: Saver, state: TrainState, seconds: float, rounds: int) -> float:
    """Seconds that one save, with its write and verification, costs training in total: the median of `rounds`.

    The steps are matrix products on one core.  The same number of steps is timed without and then with a save.  The
    other core is left for the writer, because nodes with GPUs have spare cores.
    """
    a, lost = torch.randn(512, 512), []
    step: Callable[[], Any] = lambda: a @ a  # noqa: E731
    count = int(seconds / min(timed(step) for _ in range(50)))

    def run() -> None:
        for _ in range(count):
            step()
            saver.advance(saver.parts_written)

    for _ in range(rounds):
        os.sync()
        alone = timed(run)
        state.step += 1
        lost.append(timed(lambda: (saver.save(), run())) - alone)
        saver.wait_until_pruned()
    return statistics.median(lost)


def run_rank(cfg: Config, folder: Path, quick: bool) -> None:
    """The main function of a rank.  Rank 0 writes the figures to a file."""
    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        run = RunFolder(folder / f"run-{world.size}")
        run.path.mkdir(exist_ok=True)
        saver = Saver(run, world, CheckpointConfig(keep=1), state, dict, set)
        found: dict[str, Any] = {}
        if world.size == RANKS:
            rounds = Methods(saver, state, folder).rounds(2 if quick else 8)
            for name, choose in (("least", min), ("median", statistics.median)):
                found[name] = {method: choose(seconds[method] for seconds in rounds) for method in METHODS}
            found["bytes"] = sum(entry["bytes"] for entry in saver.layout.values())
        else:
            found["lost"] = slowdown(saver, state, 1.0 if quick else 8.0, 3 if quick else 9)
        if world.rank == 0:
            (folder / f"found-{world.size}.json").write_text(json.dumps(found))
        saver.close()


def compare(folder: Path, quick: bool) -> dict[str, Any]:
    """Runs two ranks, then one, and returns all figures."""
    found: dict[str, Any] = {}
    for ranks in (RANKS, 1):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        options = ["--rank", "--folder", str(folder), *(["--quick"] if quick else [])]
        subprocess.run([*launch, __file__, *options], check=True, env=environment)
        found |= json.loads((folder / f"found-{ranks}.json").read_text())
    least, lost = found["least"], found["lost"]
    return {
        "bytes": found["bytes"],
        "ranks": RANKS,
        "least_ms": {method: round(1e3 * seconds, 2) for method, seconds in least.items()},
        "median_ms": {method: round(1e3 * seconds, 2) for method, seconds in found["median"].items()},
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
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds, with a quarter of the bytes")
    parser.add_argument(
        "--folder", type=user_path, help="folder on the disk to measure (default: the folder for temporary files)"
    )
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        cfg = Config(device="cpu")
        cfg = replace(cfg, optim=replace(cfg.optim, ema_decay=0.9999))
        if options.quick:
            cfg = replace(cfg, model=replace(cfg.model, depth=3))
        run_rank(cfg, options.folder, options.quick)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = compare(Path(folder), options.quick)
    print(f"{figures['bytes'] / 1e6:,.0f} MB {'':<37}{'minimum, ms':>13}{'median, ms':>12}")
    for method, title in METHODS.items():
        print(f"{title:<45}{figures['least_ms'][method]:>13,.1f}{figures['median_ms'][method]:>12,.1f}")
    lost, share = figures["lost_ms_per_save"], figures["overhead_per_minute"]
    print(f"a save costs training {lost:,.0f} ms in total; one save per minute costs {share:.2%}")
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
