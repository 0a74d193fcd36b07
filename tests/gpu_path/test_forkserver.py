"""The fork server leaves the GPU to its forks: a process that has initialized CUDA has forks that cannot use it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fork_supervisor import run_program
from tests.helpers.null_gpu import environment

# Prints what it sees of the GPUs of this machine.
FORK = """
import json, os, torch
def main(_):
    assert torch.ones(1, device="cuda").is_cuda
    bus = [torch.cuda.get_device_properties(i).pci_bus_id for i in range(torch.cuda.device_count())]
    print(json.dumps({"pid": os.getpid(), "bus": bus}))
"""
# Starts it with the environment of two ranks, then prints what the server looks like.
SUPERVISOR = """
import json
from pathlib import Path
import psutil
from jobs.node import forkserver, forkserver_process
forkserver.PRELOADED += EXTRA
for devices in ("0", "1", "1,0"):
    process = forkserver.start("uses_gpu", [], {"CUDA_VISIBLE_DEVICES": devices}, Path("log"))
    process.wait()
server = psutil.Process(forkserver_process.pid())
print(json.dumps({"pid": server.pid, "threads": server.num_threads()}))
"""


def start_forks(folder: Path, null_gpu: Path, preloaded: tuple[str, ...] = ()) -> tuple[dict[str, Any], str, set[int]]:
    """Describes the server; returns also the output of its forks, and the processes that have initialized CUDA."""
    (folder / "uses_gpu.py").write_text(FORK)
    variables = environment(null_gpu, devices=2) | {"NULL_GPU_LOG": str(folder / "initialized")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        done = run_program(SUPERVISOR.replace("EXTRA", repr(preloaded)), folder)
    assert done.returncode == 0, done.stderr
    initialized = {int(line.split()[0]) for line in (folder / "initialized").read_text().splitlines()}
    return json.loads(done.stdout), (folder / "log").read_text(), initialized


def test_ranks_use_their_own_gpus_because_the_fork_server_has_used_none(null_gpu_folder: Path, tmp_path: Path) -> None:
    """It has one thread, and its imports ask neither for the number of GPUs nor for anything else of CUDA."""
    server, log, initialized = start_forks(tmp_path, null_gpu_folder)
    forks = [json.loads(line) for line in log.splitlines()]
    assert [fork["bus"] for fork in forks] == [[1], [2], [2, 1]]
    assert server["threads"] == 1
    assert initialized == {fork["pid"] for fork in forks}


def test_a_preloaded_module_that_counts_the_gpus_would_be_noticed(null_gpu_folder: Path, tmp_path: Path) -> None:
    """As the import of torch._inductor.compile_fx does in some versions of torch; the forks then cannot use CUDA."""
    (tmp_path / "counts_gpus.py").write_text("import torch; torch.cuda.is_available()")
    server, log, initialized = start_forks(tmp_path, null_gpu_folder, ("counts_gpus",))
    assert initialized == {server["pid"]}
    assert "Cannot re-initialize CUDA in forked subprocess" in log
