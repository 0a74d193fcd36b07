"""The kind of device that a run will be computed on, as far as it is known before it starts.  No torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.estimate.past_runs import PastRuns
from jobs.estimate.speeds import CPU, kind
from jobs.estimate.wall_time import cores_here
from jobs.login.resources import Resources
from jobs.node import nvml
from jobs.slurm.tables import PartitionNodes
from vit.config.schema import Config
from vit.history.utilization import PEAK_TERAFLOPS

MOST = 64  # GPUs of a machine


@dataclass(frozen=True)
class Device:
    """The kind of device, and what it is known from."""

    name: str  # "cpu", the name of a GPU, or "" for a GPU of unknown kind
    count: int = 0  # on this machine; 0: the nodes have them
    note: str = ""  # what should be said about it


def device_here(cfg: Config, past: PastRuns) -> Device:
    """The GPUs of this machine, or its cores if it has none or they are not asked for."""
    cores = cores_here()
    if cfg.device == "cpu":
        return Device(CPU, cores)
    names = _gpus()
    if names:
        return Device(names[0], len(names))
    if cfg.device == "cuda":
        return _of_past_run(past, "this machine has no GPU", "")
    note = "this machine has no GPU, so that a run here uses its cores; --device cuda estimates it for GPUs"
    return Device(CPU, cores, note)


def _gpus() -> list[str]:
    """The names of the GPUs that this process may use."""
    visible, out = os.environ.get("CUDA_VISIBLE_DEVICES"), list[str]()
    try:
        library = nvml.load()
        for name in map(str, range(MOST)) if visible is None else visible.split(","):
            out += [gpu.name for gpu in library.gpus({"CUDA_VISIBLE_DEVICES": name}, 1)] if library else []
    except nvml.NvmlError:
        pass  # there are no more
    return out


def device_on_slurm(cfg: Config, groups: Sequence[PartitionNodes], resources: Resources, past: PastRuns) -> Device:
    """The GPUs of the nodes, by the type that is requested or that Slurm knows, else those of the newest past run."""
    if cfg.device == "cpu":
        return Device(CPU)
    requested = resources.gpu_type or resources.cluster.gres.partition(":")[2]
    constraint = resources.cluster.constraint.lower()
    types = [requested] if requested else [name for name in PEAK_TERAFLOPS if name.lower() in constraint][:1]
    types = types or sorted({type_ for group in groups for type_, _ in group.gpu_types})
    if len({kind(type_) for type_ in types}) == 1:
        return Device(types[0])
    if len(types) > 1:
        return Device("", note=f"the nodes have {', '.join(types)}: --gpus TYPE:N chooses one")
    return _of_past_run(
        past, "Slurm does not say which GPUs the nodes have", "; --gpus TYPE:N does, where they have names"
    )


def _of_past_run(past: PastRuns, why: str, advice: str) -> Device:
    """The GPUs of the newest run on GPUs, if there is one."""
    newest = min((speed for speed in past.speeds if speed.device != CPU), key=lambda speed: speed.age, default=None)
    if newest is None:
        return Device("", note=f"{why}{advice}")
    return Device(newest.device, note=f"{why}: {newest.device} is assumed, as in run {newest.name}")
