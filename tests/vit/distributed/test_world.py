"""Ranks, devices, and their share of the micro-batches."""

import os
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import BackendConfig

from tests.helpers.gpu_ranks import joined_as_on_gpus
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.distributed.world import World, enable_determinism, join_process_group, pick_device
from vit.run.dump_pipe import PIPE_VARIABLE


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_every_micro_batch_belongs_to_one_rank(size: int) -> None:
    """In order, without gaps, the same number on each rank."""
    worlds = [World(rank=rank, size=size, local_size=size, device=torch.device("cpu")) for rank in range(size)]
    shares = [world.my_micro_batches(12) for world in worlds]
    assert [micro_batch for share in shares for micro_batch in share] == list(range(12))
    assert {len(share) for share in shares} == {12 // size}


def rank_size_and_threads(cfg: Config) -> tuple[int, int, int]:
    with join_process_group(cfg) as world:
        return world.rank, world.size, torch.get_num_threads()


def test_a_number_of_ranks_that_does_not_divide_the_micro_batches_is_refused() -> None:
    """On every rank, before the process group is created; the message lists the numbers that do, and a micro-batch."""
    with pytest.raises(ValueError, match=r"3 ranks do not divide the 4 micro-batches .* use 1, 2 or 4 ranks, or --mi"):
        run_ranks(3, rank_size_and_threads, Config(device="cpu"))


def test_no_process_waits_for_ranks_that_nobody_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that another command left behind is refused, by training and by `vit.evaluate`."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the environment has WORLD_SIZE=2, but not RANK"):
        rank_size_and_threads(Config(device="cpu"))


def test_a_rank_that_cannot_reach_rank_0_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line after torch's own error has the address, the timeout and what to do."""
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}).items():
        monkeypatch.setenv(name, value)
    config = Config(device="cpu", global_batch=4, micro_batch=2, timeout_minutes=0.01)
    with pytest.raises(dist.DistError) as failed, join_process_group(config):
        pass
    (note,) = failed.value.__notes__
    assert note.startswith("vit.train: not all ranks met at 127.0.0.1:1 (MASTER_ADDR:MASTER_PORT) in 0.01 minutes")


def test_each_rank_uses_one_thread_on_a_cpu() -> None:
    """The number of threads would change the order of sums."""
    assert run_ranks(4, rank_size_and_threads, Config(device="cpu")) == [(rank, 4, 1) for rank in range(4)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    """The message says what to do; `auto` uses the CPU."""
    with pytest.raises(ValueError, match=r"no GPU is visible .* use device: cpu"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("local_rank", [0, 1, 2])
def test_fewer_gpus_than_ranks_are_refused_on_every_rank(local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank of the node prints it; without it, nobody would."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="3 ranks on this node but only 2 visible GPUs; start one rank per GPU"):
        pick_device("auto", local_rank, 3)


def fail_while_another_rank_waits(cfg: Config) -> None:
    with joined_as_on_gpus(cfg, destroy=dist.barrier) as world:  # NCCL's destroy may wait for all ranks
        if world.rank == 1:
            raise UserError("page 3 is damaged")
        dist.recv(torch.empty(1), 1)


def test_the_error_of_a_rank_on_a_gpu_is_seen_at_once() -> None:
    """Another rank is in the middle of a step, and would wait for minutes for this one."""
    with pytest.raises(UserError, match="page 3 is damaged"):
        run_ranks(2, fail_while_another_rank_waits, Config(device="cpu"), timeout=20)


def count_destroys(cfg: Config, error: BaseException | None) -> int:
    """How often a rank on a GPU destroys its process group if it ends with an error, or without one."""
    destroyed = []
    with suppress(SystemExit, UserError), joined_as_on_gpus(cfg, lambda: destroyed.append(1)):
        if error is not None:
            raise error
    dist.destroy_process_group()
    return len(destroyed)


@pytest.mark.parametrize(("error", "count"), [(None, 1), (SystemExit(1), 1), (UserError("page 3 is damaged"), 0)])
def test_a_rank_on_a_gpu_that_ends_by_itself_destroys_its_process_group(error: BaseException, count: int) -> None:
    """With exit code 0, or with another one; only an error must not wait for it."""
    assert run_ranks(2, count_destroys, Config(device="cpu"), error) == [count, count]


def test_a_single_gpu_destroys_its_process_group_after_an_error_too() -> None:
    """It waits for nobody.  torch 2.11 would print a warning below the error that the process group is left over."""
    assert run_ranks(1, count_destroys, Config(device="cpu"), UserError("page 3 is damaged")) == [1]


def fail_twice(cfg: Config) -> None:
    destroy = mock.patch("torch.distributed.destroy_process_group", side_effect=RuntimeError("connection reset"))
    with destroy, join_process_group(cfg):
        raise UserError("page 3 is damaged")


def test_the_first_error_remains_if_the_process_group_cannot_be_destroyed() -> None:
    """The second one is a note."""
    with pytest.raises(UserError, match="page 3 is damaged") as raised:
        run_ranks(1, fail_twice, Config(device="cpu"))
    assert "The process group could not be destroyed either: connection reset" in str(raised.value.__notes__)


def start_on_gpu(cfg: Config, pipe_prefix: str) -> tuple[str | None, str]:
    """The prefix that remains for NCCL's pipe, and the function of torch that creates a process group of NCCL."""
    os.environ[PIPE_VARIABLE] = pipe_prefix
    with joined_as_on_gpus(cfg, dist.destroy_process_group):
        BackendConfig("cpu:gloo,cuda:nccl")  # from torch 2.15 on, this chooses the function
        plugin = dist.Backend._plugins.get("NCCL")
        return os.environ.get(PIPE_VARIABLE), plugin.creator_fn.__name__ if plugin else "the only one"


def test_a_rank_starts_although_nccl_cannot_create_its_pipe(tmp_path: Path) -> None:
    """torch would abort it; it does not try without the variable."""
    (tmp_path / "full-0.pipe").mkdir()
    for prefix, remaining in (("missing/flight-", None), ("full-", None), ("flight-", str(tmp_path / "flight-"))):
        ((found, _),) = run_ranks(1, start_on_gpu, Config(device="cpu"), str(tmp_path / prefix))
        assert found == remaining
    assert [path.name for path in tmp_path.iterdir()] == ["full-0.pipe"]


def test_all_versions_of_torch_use_the_same_implementation_of_nccl(tmp_path: Path) -> None:
    """The one that records its last operations, and writes them if a rank hangs."""
    ((_, creator),) = run_ranks(1, start_on_gpu, Config(device="cpu"), str(tmp_path / "flight-"))
    assert creator in {"_create_nccl_process_group", "the only one"}


def uses_tf32(cfg: Config) -> bool:
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE does in NVIDIA's containers
    with joined_as_on_gpus(cfg, dist.destroy_process_group):
        return torch.backends.cuda.matmul.allow_tf32


def test_float32_is_never_tf32() -> None:
    """Wherever the run is; `--help` says it."""
    assert run_ranks(1, uses_tf32, Config(device="cpu", precision="float32")) == [False]


def determinism_settings() -> dict[str, object]:
    enable_determinism()
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "fills uninitialized memory": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "cudnn attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "cublas": os.environ["CUBLAS_WORKSPACE_CONFIG"],
        "nvls": os.environ["NCCL_NVLS_ENABLE"],
        "triton's fused multiply-add": os.environ.get("TRITON_DEFAULT_FP_FUSION"),
        "compiler benchmarks": not torch._inductor.config.deterministic,
    }


def test_enable_determinism_sets_all_that_torch_documents() -> None:
    """For cuBLAS, NCCL and Triton too, but not the filling of memory, which only takes time."""
    (settings,) = run_ranks(1, determinism_settings)
    assert settings == {
        "deterministic": True,
        "fills uninitialized memory": False,
        "cudnn benchmark": False,
        "cudnn attention": False,
        "cublas": ":4096:8",
        "nvls": "0",
        "triton's fused multiply-add": "1",
        "compiler benchmarks": False,
    }
