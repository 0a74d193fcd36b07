"""Ranks on GPUs that fail or hang."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers.null_gpu import environment
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import ROOT
from vit.config.schema import Config, to_yaml
from vit.config.user_error import UserError
from vit.distributed.world import join_process_group
from vit.run.folder import RunFolder

CONFIG = Config(global_batch=8, micro_batch=4, device="cuda")


def fail_while_another_rank_waits() -> None:
    with join_process_group(CONFIG) as world:
        dist.all_reduce(torch.ones(4, device="cuda"))
        if world.rank == 1:
            raise UserError("page 3 is damaged")
        dist.recv(torch.empty(1), 1)


def test_a_rank_that_fails_says_why_although_nccl_would_wait_for_the_others(null_gpu: NullGpu, tmp_path: Path) -> None:
    """NCCL's own end waits until all ranks have called it; the other rank is in the middle of a step."""
    waits = {"NULL_GPU_DESTROY_FOLDER": str(tmp_path)}
    with pytest.raises(UserError, match="page 3 is damaged"):
        null_gpu.run(fail_while_another_rank_waits, ranks=2, variables=waits, timeout=20)


SUPERVISOR = """
import sys
from jobs.node import elastic_agent
from jobs.node.job_spec import JobSpec
from jobs.node.supervisor import supervise
elastic_agent.MODULE = "hanging_rank"
supervise(JobSpec(run=sys.argv[1], nodes=1, gpus=1, stall_seconds=3, restarts=0))
"""
# The second all-reduce never ends, as if another rank were gone.
RANK = """
import os, torch
import torch.distributed as dist
from pathlib import Path
from tests.gpu_path.test_failures import CONFIG
from vit.distributed.world import join_process_group
from vit.run.heartbeat import Heartbeat

def main(arguments):
    heartbeat = Heartbeat(Path(arguments[-1]) / "logs")
    with join_process_group(CONFIG):
        dist.all_reduce(torch.ones(4, device="cuda"))
        for _ in range(3):
            heartbeat.beat("step")
        Path(os.environ["NULL_GPU_STUCK_FOLDER"], str(os.getpid())).touch()
        dist.all_reduce(torch.ones(5, device="cuda"))
        torch.cuda.synchronize()
"""


def test_a_collective_operation_that_hangs_is_in_the_record_of_the_rank(null_gpu_folder: Path, tmp_path: Path) -> None:
    """NCCL's monitor writes it when the supervisor notices that the rank does not go on."""
    run = RunFolder(tmp_path / "run")
    run.logs.mkdir(parents=True)
    run.config.write_text(to_yaml(CONFIG))
    (tmp_path / "hanging_rank.py").write_text(RANK)
    variables = environment(null_gpu_folder) | {"NULL_GPU_STUCK_FOLDER": str(tmp_path)}
    variables |= {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, str(run.path)], env=os.environ | variables, capture_output=True, text=True,
        timeout=100, check=False,
    )  # fmt: skip
    assert "stalled for 3 s" in done.stderr
    record = pickle.loads((run.logs / "flight-0").read_bytes())
    last = record["entries"][-1]
    assert (last["profiling_name"], last["input_sizes"]) == ("nccl:all_reduce", [[5]])
    assert last["state"] != "completed"
