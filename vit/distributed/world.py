"""Ranks and devices: this process's place among all, and the process group."""

import ctypes
import datetime
import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vit.config.schema import Config


@dataclass(frozen=True)
class World:
    """One rank's place among `size` ranks."""

    rank: int
    size: int
    local_size: int  # ranks on this node
    device: torch.device
    local_rank: int = 0  # rank among those of this node

    def my_micro_batches(self, micro_batches: int) -> range:
        """The micro-batches of a batch that this rank runs: of W ranks, rank r has r·V/W to (r+1)·V/W - 1."""
        mine = micro_batches // self.size
        return range(self.rank * mine, (self.rank + 1) * mine)


ALONE = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))


def pick_device(choice: str, local_rank: int) -> torch.device:
    """The device of a rank.  Raises ValueError if `cuda` is asked for and there is no GPU for this rank."""
    gpus = torch.cuda.device_count()
    if choice == "cpu" or (choice == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise ValueError(
            "device: cuda, but no GPU is visible here (nvidia-smi lists those that exist, CUDA_VISIBLE_DEVICES may "
            "hide them); use device: cpu to train without one"
        )
    if local_rank >= gpus:
        raise ValueError(f"{local_rank + 1} ranks on this node but only {gpus} visible GPUs; start one rank for each")
    return torch.device("cuda", local_rank)


# Read when CUDA and NCCL start.
BITS_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # or cuBLAS takes another algorithm where streams share its workspace
    "NCCL_NVLS_ENABLE": "0",  # sums inside of NVSwitch differ from call to call
}


def keep_bits() -> None:
    """Has GPUs compute the same bits each time, in this process, before it uses one.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.update(BITS_ENVIRONMENT)
    torch.use_deterministic_algorithms(True)  # the compiler too, which else takes what was fastest this time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)  # attention whose backward has no fixed order


@contextmanager
def join(cfg: Config) -> Iterator[World]:
    """Joins the process group that torchrun's environment names (or a group of one), and leaves it at the end.

    Small tensors on the CPU travel by gloo also where gradients travel by NCCL: an agreement never waits for the GPU.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cfg.check_ranks(size)
    device = pick_device(cfg.device, local_rank)
    if device.type == "cuda":
        if cfg.exact == "bits":
            keep_bits()
        torch.cuda.set_device(device)
    else:
        # The order in which a matrix product sums depends on the number of threads; one thread a rank is the same sum
        # on every machine and for every number of ranks.
        torch.set_num_threads(1)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        rank=rank,
        world_size=size,
        store=dist.HashStore() if "RANK" not in os.environ else None,  # type: ignore[attr-defined]
        timeout=datetime.timedelta(minutes=cfg.timeout_minutes),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield World(rank=rank, size=size, local_size=local_size, device=device, local_rank=local_rank)
    finally:
        # What still uses the group goes first: a reducer that the interpreter takes down at its end, when the group's
        # threads may no longer run Python, aborts the process (seen in 2 of 10 runs on four ranks).
        gc.collect()
        dist.destroy_process_group()


def end_with_parent() -> None:
    """Has the kernel send SIGTERM when the process that started this rank dies, so that no rank outlives its job."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; Linux alone has it, and Slurm
