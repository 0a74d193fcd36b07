"""The sizes in which a run is submitted, from the texts of --nodes and --gpus: `4`, `1-4`, `a100:1-4,v100:2`.

A size whose ranks do not divide the micro-batches of the run cannot train it, and is not a candidate.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.node.candidates import size_text
from vit.config.batches import has_canonical_order
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.config.values import listed
from vit.run.counts import counted

NODES_FORMS = "use a whole number such as 2, or a range such as 1-2"
GPUS_FORMS = (
    "use a whole number such as 4, a range such as 1-4, or one of them for each type of GPU, as in a100:1-4,v100:2"
)
GPU_TYPE = r"[\w.-]*[A-Za-z][\w.-]*"  # as in Slurm's gres.conf: a100, 3g.20gb
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU


@dataclass(frozen=True)
class Size:
    """What one job of a run requests."""

    nodes: int
    gpus: int  # ranks per node
    gpu_type: str = ""  # empty: any

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.gpus

    def __str__(self) -> str:
        return size_text(self.nodes, self.gpus, self.gpu_type)


@dataclass(frozen=True)
class Range:
    """From the least to the most, of one type of GPU."""

    least: int
    most: int
    gpu_type: str = ""  # empty: any

    @property
    def is_fixed(self) -> bool:
        """Whether it has a single number."""
        return self.least == self.most


@dataclass(frozen=True)
class RequestedSizes:
    """What --nodes and --gpus say."""

    nodes: Range
    gpus: tuple[Range, ...]
    text: str  # both options as they were given, for messages

    @property
    def is_elastic(self) -> bool:
        """Whether they allow several sizes."""
        return len(self.gpus) > 1 or not (self.nodes.is_fixed and self.gpus[0].is_fixed)

    @property
    def most(self) -> Size:
        """The largest size, of any number of micro-batches."""
        widest = max(self.gpus, key=lambda gpus: gpus.most)
        return Size(self.nodes.most, widest.most, widest.gpu_type)

    def allowed(self, configs: Sequence[Config]) -> list[Size]:
        """The sizes whose ranks divide the micro-batches of all these configs, largest first, on fewest nodes first.

        Raises UserError if one of the requested ranges, or a single number, allows none.
        """
        limit = min(stage.micro_batches for config in configs for stage in config.stages)
        out: list[Size] = []
        for gpus in self.gpus:
            sizes = [
                Size(nodes, count, gpus.gpu_type)
                for nodes in range(self.nodes.least, min(self.nodes.most, limit) + 1)
                for count in range(gpus.least, min(gpus.most, limit) + 1)
                if all(config.allows_ranks(nodes * count) for config in configs)
            ]
            if not sizes:
                raise self._no_size(gpus, configs)
            out += sizes
        return sorted(dict.fromkeys(out), key=lambda size: (-size.ranks, size.nodes))

    def _no_size(self, gpus: Range, configs: Sequence[Config]) -> UserError:
        if self.nodes.is_fixed and gpus.is_fixed:
            for config in configs:
                config.check_ranks(self.nodes.least * gpus.least)
        valid = [str(ranks) for ranks in dividing_ranks(configs)]
        part = f" ({_range_text(gpus)})" if len(self.gpus) > 1 else ""
        return UserError(
            f"{self.text}{part}: no size has a number of ranks that divides the micro-batches of a batch; use "
            f"{listed(valid)} rank{'s' if len(valid) > 1 else ''} in all"
        )


def dividing_ranks(configs: Sequence[Config]) -> list[int]:
    """The numbers of ranks that divide the micro-batches of all these configs, at every image size."""
    most = min(stage.micro_batches for config in configs for stage in config.stages)
    return [ranks for ranks in range(1, most + 1) if all(config.allows_ranks(ranks) for config in configs)]


def requested_sizes(nodes: str, gpus: str) -> RequestedSizes:
    """Reads the texts of the two options.  Raises UserError, which names the wrong text and the allowed forms."""
    parts = []
    for word in gpus.split(","):
        gpu_type, colon, numbers = word.strip().rpartition(":")
        if colon and not re.fullmatch(GPU_TYPE, gpu_type):
            raise _wrong("--gpus", gpus, word, GPUS_FORMS)
        parts.append(_range("--gpus", gpus, numbers, gpu_type, GPUS_FORMS))
    return RequestedSizes(
        _range("--nodes", nodes, nodes, "", NODES_FORMS), tuple(parts), f"--nodes {nodes} --gpus {gpus}"
    )


def _range(option: str, text: str, numbers: str, gpu_type: str, forms: str) -> Range:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", numbers.strip())
    if not match:
        raise _wrong(option, text, numbers, forms)
    least, most = int(match[1]), int(match[2] or match[1])
    if least < 1:
        raise UserError(f"{option} must be at least 1, not {text}")
    if least > most:
        raise UserError(f"{option} {text}: a range goes from the smaller to the larger number, {most}-{least}")
    return Range(least, most, gpu_type)


def _wrong(option: str, text: str, part: str, forms: str) -> UserError:
    which = f" ({part.strip()!r})" if part.strip() != text.strip() else ""
    return UserError(f"{option} {text!r}{which}: {forms}")


def _range_text(part: Range) -> str:
    numbers = str(part.least) if part.is_fixed else f"{part.least}-{part.most}"
    return f"{part.gpu_type}:{numbers}" if part.gpu_type else numbers


def choose_sizes(nodes: str, gpus: str, configs: Sequence[Config], backend: str) -> tuple[list[Size], list[str]]:
    """The sizes that --nodes and --gpus request, which can train all these configs; and remarks.

    Without Slurm it is one that this machine can run.  Raises UserError.
    """
    requested = requested_sizes(nodes, gpus)
    sizes = requested.allowed(configs)
    if sizes[0].gpu_type and any(config.device == "cpu" for config in configs):
        raise UserError(f"--gpus {gpus}: the config has device: cpu, which uses no GPU; give numbers alone")
    if backend == "slurm":
        return sizes, []
    size, remark = size_on_this_machine(requested, sizes, configs[0].device)
    return [size], [remark]


def size_on_this_machine(requested: RequestedSizes, sizes: Sequence[Size], device: str) -> tuple[Size, str]:
    """The largest of these sizes that this machine can run, else the smallest; and a remark if there is a choice.

    Raises UserError if all sizes are of several nodes.
    """
    if requested.nodes.least > 1:
        raise UserError(f"--nodes {requested.nodes.least}: without Slurm there is only one node, this machine")
    here = [Size(1, size.gpus) for size in sizes if size.nodes == 1]
    if not here:
        raise UserError(f"{requested.text}: no size has a single node, and without Slurm there is only this machine")
    if not requested.is_elastic:
        return here[0], ""
    gpus = 0 if device == "cpu" else visible_gpus()
    units, noun = (gpus, "GPU") if gpus or device == "cuda" else (len(os.sched_getaffinity(0)), "core")
    size = next((size for size in here if size.gpus <= units), here[-1])
    return size, f"{requested.text}: {counted(size.ranks, 'rank')} on this machine, which has {counted(units, noun)}"


def runnable(sizes: Sequence[Size], check: Callable[[Size], None], remarks: list[str]) -> list[Size]:
    """The sizes that a check of the partition does not refuse; adds a remark about each number of ranks without any.

    Of several with as many ranks, only the one on the fewest nodes.  Raises the UserError of the smallest if none is
    left.
    """
    found: dict[tuple[int, str], Size] = {}
    refused: dict[tuple[int, str], UserError] = {}
    for size in sizes:
        kind = (size.ranks, size.gpu_type)
        if kind in found:
            continue
        try:
            check(size)
            found[kind] = size
        except UserError as error:
            refused[kind] = error
    if not found:
        raise [*refused.values()][-1]
    for kind in [kind for kind in refused if kind not in found]:
        remarks.append(f"not submitted for {size_text(1, *kind)}: {refused[kind]}")
    return [*found.values()]


def visible_gpus() -> int:
    """The GPUs of this machine that this process may use, without asking their driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() and not name.strip().startswith("-")])
    return len(list(NVIDIA_GPUS.glob("*"))) if NVIDIA_GPUS.is_dir() else 0


def describe(size: Size, sizes: Sequence[Size], config: Config, use_gpus: bool) -> str:
    """One candidate in a line: its ranks, their micro-batches, and whether its bits are those of the others."""
    counts = sorted({stage.micro_batches for stage in config.stages})
    shares = listed([str(count // size.ranks) for count in counts], "then")
    each = f"{shares} micro-batch{'' if shares == '1' else 'es'} each"
    bits = ""
    if config.exact == "bits" and len(sizes) > 1:
        canonical = all(has_canonical_order(count, size.ranks) for count in counts)
        bits = "; the bits of 1 rank" if canonical else "; adds in an order of its own: other bits than 1 rank"
    what = str(size) if use_gpus else f"{counted(size.nodes, 'node')}"
    return f"{what}: {counted(size.ranks, 'rank')}, {each}{bits}"
