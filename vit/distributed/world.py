"""Ranks, devices and the process group."""

import datetime
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.distributed.launcher import read_place
from vit.run.dump_pipe import unset_unusable_pipe
from vit.run.loopback import find_loopback
from vit.run.progress import show

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """One rank's place among `size` ranks."""

    rank: int
    size: int
    local_size: int  # ranks on this node
    device: torch.device
    local_rank: int = 0  # rank among those on this node

    def my_micro_batches(self, micro_batches: int) -> range:
        """The indices of the micro-batches that this rank runs: of V on W ranks, rank r runs r·V/W to (r+1)·V/W - 1."""
        count = micro_batches // self.size
        return range(self.rank * count, (self.rank + 1) * count)


SINGLE_RANK = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))


def on_rank_0(world: World, function: Callable[[], Result]) -> Result:
    """Calls a function on rank 0 and returns its result on all ranks; its OSError or UserError is raised on all too."""
    shared: list[Any] = [None]
    if world.rank == 0:
        try:
            shared = [function()]
        except (OSError, UserError) as error:
            shared = [error]
    dist.broadcast_object_list(shared)
    if isinstance(shared[0], OSError | UserError):
        raise shared[0]
    result: Result = shared[0]
    return result


def pick_device(choice: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """The device of one of the `local_size` ranks on this node.

    Raises UserError, on all of them, if `cuda` is requested and there is no GPU, or if there are too few GPUs.
    """
    gpus = torch.cuda.device_count()
    if choice == "cpu" or (choice == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise UserError(
            "device: cuda, but no GPU is visible (nvidia-smi lists the GPUs of this machine, CUDA_VISIBLE_DEVICES may "
            "hide them); use device: cpu to do without"
        )
    if local_size > gpus:
        raise UserError(f"{local_size} ranks on this node but only {gpus} visible GPUs; start one rank per GPU")
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """The name of a GPU, such as "NVIDIA H200"; "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# Read when CUDA and NCCL are initialized, and when kernels are compiled.
DETERMINISM_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # or cuBLAS may choose another algorithm if streams share its workspace
    "NCCL_NVLS_ENABLE": "0",  # sums inside of NVSwitch differ from call to call
    "TRITON_DEFAULT_FP_FUSION": "1",  # a * b + c is rounded once; the default of Triton 3.9, not of later versions
}


def enable_determinism() -> None:
    """Makes GPU computations of this process deterministic; must be called before it uses a GPU.

    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    os.environ.update(DETERMINISM_ENVIRONMENT)
    torch.use_deterministic_algorithms(True)  # also keeps the compiler from choosing kernels by their measured speed
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and not needed
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass is not deterministic


def _prepare_nccl(rank: int) -> None:
    """Chooses the implementation of the NCCL backend, and checks what it would abort the process for."""
    # Read by newer versions of torch when they create the group.  Their default (in torch 2.15 ProcessGroupNCCL2) has
    # neither a monitor nor a pipe: a rank that hangs would never write its last operations, the flight recorder.
    os.environ.setdefault("TORCH_DIST_USE_NCCL2", "0")
    if problem := unset_unusable_pipe(rank):
        show(f"{problem}; NCCL cannot be asked for its last operations", lasting=True)


@contextmanager
def _peers_named(cfg: Config) -> Iterator[None]:
    """Adds to an error of the network what torch waited for, and what to do."""
    try:
        yield
    except dist.DistError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        error.add_note(
            f"vit.train: not all ranks met at {address} (MASTER_ADDR:MASTER_PORT) in {cfg.timeout_minutes:g} minutes "
            "(timeout_minutes): start rank 0 there and all other ranks, and check address, port and firewall"
        )
        raise


@contextmanager
def join_process_group(cfg: Config) -> Iterator[World]:
    """Joins the process group of torchrun's environment (or creates a group of one), and leaves it at the end.

    CPU tensors use gloo even if gradients use NCCL, so that exchanging flags never waits for the GPU.
    Raises UserError if the environment, the config or this machine does not allow it.
    """
    place = read_place()
    cfg.check_ranks(place.size)
    device = pick_device(cfg.device, place.local_rank, place.local_size)
    if place.local_size == place.size and "GLOO_SOCKET_IFNAME" not in os.environ:
        # By default gloo uses the address to which this machine's name resolves; laptops and containers may have none.
        os.environ["GLOO_SOCKET_IFNAME"] = find_loopback().interface
    if device.type == "cuda":
        _prepare_nccl(place.rank)
        if cfg.exact == "bits":
            enable_determinism()
        torch.set_float32_matmul_precision("highest")  # no TF32, which a variable of NVIDIA's containers enables
        torch.cuda.set_device(device)
    else:
        # The summation order of a matrix product depends on the number of threads.  With one thread per rank it is the
        # same on every machine and for every number of ranks.
        torch.set_num_threads(1)
    with _peers_named(cfg):
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=place.rank,
            world_size=place.size,
            store=dist.HashStore() if place.size == 1 else None,  # type: ignore[attr-defined]
            timeout=datetime.timedelta(minutes=cfg.timeout_minutes),
            device_id=device if device.type == "cuda" else None,
        )
    with _leaving(device):
        yield World(place.rank, place.size, place.local_size, device, place.local_rank)


@contextmanager
def _leaving(device: torch.device) -> Iterator[None]:
    """Destroys the process group at the end; after an error so that the error is neither delayed nor replaced.

    NCCL's destroy may wait, for minutes, for ranks that are gone or know of no error.  On GPUs a rank that failed
    therefore leaves without it, unless it is alone: the end of its process closes gloo's connections, and this tells
    the others.
    """
    try:
        yield
    except SystemExit:  # the rank ends by itself, with an exit code
        _destroy_process_group()
        raise
    except BaseException as error:
        if device.type != "cuda" or dist.get_world_size() == 1:
            try:
                _destroy_process_group()
            except Exception as problem:
                error.add_note(f"The process group could not be destroyed either: {problem}")
        raise
    _destroy_process_group()


def _destroy_process_group() -> None:
    # Collect what still uses the group first: a DDP reducer that is destroyed at interpreter exit, when the group's
    # threads can no longer run Python code, aborts the process (seen in 2 of 10 runs on four ranks).
    gc.collect()
    dist.destroy_process_group()
