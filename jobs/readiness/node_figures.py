"""What the figures of `vit.node_benchmark` mean for a run, in words."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.login.resources import Resources
from jobs.readiness.finding import Finding
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.dataset_manifest import read_dataset_manifest
from vit.history.utilization import peak_flops, utilization
from vit.run.counts import counted
from vit.run.progress import format_duration

GOOD_SHARE_OF_PEAK = 0.5  # of a large matrix product; cards whose power is limited reach 0.6 to 0.8
SLOW_SUM = 0.2  # share of a step that the sum of the gradients may take; most of it overlaps with the backward pass
TOLERATED_DATA_WAIT = 0.03  # share of the time

Part = dict[str, Any]


def judge(parts: Sequence[Part], resources: Resources, cfg: Config) -> Iterator[Finding]:
    """One finding for each part that was measured; the others are missing."""
    found = {str(part.get("part")): part for part in parts}
    node = found.get("node", {})
    if "node" in found:
        yield _node(node, resources, cfg)
    if "matrix product" in found:
        yield _matrix_product(found["matrix product"], node, cfg)
    if "sums" in found:
        yield _sums(found["sums"], found.get("training"), cfg)
    if "training" in found:
        if "decoding" in found:
            yield _decoding(found["decoding"], found["training"], node, resources)
        yield _training(found["training"], node, cfg)
    if "save" in found:
        yield _save(found["save"])
    if "error" in found:
        yield _error(found["error"], found)


def _node(node: Part, resources: Resources, cfg: Config) -> Finding:
    ranks, nodes = int(node["ranks"]), int(node["nodes"])
    devices = f"{counted(nodes, 'node')} of {ranks // nodes} x {node['device']}, {counted(node['cores'], 'core')} each"
    if "cuda" not in node:
        if resources.requests_gpus and cfg.device == "auto":
            text = f"{devices}: torch sees no GPU"
            return Finding("node", "FAIL", text, "the driver may be too old for this torch: compare nvidia-smi")
        return Finding("node", "OK", devices)
    versions = f"driver {node['driver'] or 'unknown'}, CUDA {node['cuda']}, NCCL {node['nccl']}"
    text = f"{devices}, {node['memory'] / 1e9:.0f} GB per GPU; {versions}"
    others = ranks // nodes - 1
    if others and node["peers"] < others:
        text += f"; a GPU reaches the memory of {node['peers']} of the {others} others: sums go through the host"
        return Finding("node", "WARN", text, "`nvidia-smi topo -m` shows the connections; choose nodes with NVLink")
    return Finding("node", "OK", text)


def _matrix_product(part: Part, node: Part, cfg: Config) -> Finding:
    text = f"{part['teraflops']:,.3g} TFLOP/s in {cfg.precision}"
    peak = peak_flops(str(node.get("device", "")), cfg.precision)
    if peak is None:
        return Finding("matrix product", "OK", text)
    share = 1e12 * part["teraflops"] / peak
    text += f", {share:.0%} of the card's {peak / 1e12:,.0f}"
    if share >= GOOD_SHARE_OF_PEAK:
        return Finding("matrix product", "OK", text)
    advice = "look for other processes, and for limits of power or clock: `nvidia-smi -q -d PERFORMANCE`"
    return Finding("matrix product", "WARN", text, advice)


def _sums(part: Part, training: Part | None, cfg: Config) -> Finding:
    chosen = part["fixed_order" if cfg.exact == "bits" else "all_reduce"]

    def describe(name: str) -> str:
        return f"{1e3 * part[name]['seconds']:,.3g} ms ({part[name]['gigabytes_per_second']:,.3g} GB/s)"

    text = f"{part['bytes'] / 1e6:,.0f} MB: all-reduce {describe('all_reduce')}, fixed order {describe('fixed_order')}"
    if training is None:
        return Finding("gradient sum", "OK", text)
    share = chosen["seconds"] * training["images_per_second"] / cfg.global_batch
    text += f"; {share:.1%} of a step, if nothing overlaps"
    if share <= SLOW_SUM:
        return Finding("gradient sum", "OK", text)
    advice = "use fewer nodes, or name the fast network in `setup:` of the cluster file (NCCL_SOCKET_IFNAME)"
    return Finding("gradient sum", "WARN", text, advice)


def _decoding(part: Part, training: Part, node: Part, resources: Resources) -> Finding:
    if not part.get("images_per_second"):
        return Finding("decoding", "OK", "not measured: the data set has less than two batches")
    decoded, waiting = float(part["images_per_second"]), float(training["data_wait"])
    needed = training["images_per_second"] / max(0.05, 1 - waiting)
    cores, device = int(node["cores"]) * int(node["nodes"]), "GPU" if "cuda" in node else "rank"
    text = f"{decoded:,.0f} images/s on {counted(cores, 'core')}"
    training_speed = f"{counted(node['ranks'], device)} can train on {needed:,.0f}"
    if waiting <= TOLERATED_DATA_WAIT or decoded > 2 * needed:  # then the wait has another cause, as a busy node
        return Finding("decoding", "OK", f"{text}; {training_speed}")
    text += f", but {training_speed}: {waiting:.0%} of the time is spent waiting for images"
    wanted = math.ceil(resources.cluster.cpus_per_gpu * max(1.1, 1.1 * needed / decoded))
    return Finding("decoding", "WARN", text, f"ask for --cpus-per-gpu {wanted}, or store smaller images")


def _training(part: Part, node: Part, cfg: Config) -> Finding:
    speed = float(part["images_per_second"])
    text = f"{counted(part['steps'], 'step')}: {speed:,.0f} images/s"
    share = utilization(cfg.model, cfg.precision, str(node.get("device", "")), int(node["ranks"]), speed)
    if share is not None:
        text += f", {share:.0%} of the peak FLOP/s"
    if "peak_memory" in part and node.get("memory"):
        text += f"; {part['peak_memory'] / 1e9:.0f} of {node['memory'] / 1e9:.0f} GB of a GPU's memory"
    text += f"; the first step took {format_duration(part['first_step_seconds'])}"
    if images := _images(cfg):
        text += (
            f"; all {counted(cfg.epochs, 'epoch')} take {format_duration(_images_of_full_size(cfg, images) / speed)}"
        )
    return Finding("training", "OK", text)


def _images_of_full_size(cfg: Config, images: int) -> float:
    """The images at `model.image_size` that have as many pixels as those of all steps."""
    stages = RunSchedule(cfg, images).stages
    steps = sum((s.stop - s.start) * (s.cfg.model.image_size / cfg.model.image_size) ** 2 for s in stages)
    return steps * cfg.global_batch


def _images(cfg: Config) -> int:
    """Images of an epoch; 0 if the data set cannot be read here."""
    try:
        images = read_dataset_manifest(cfg.data.train).samples
    except (UserError, OSError):
        return 0
    return min(cfg.data.limit or images, images)


def _save(part: Part) -> Finding:
    if "problem" in part:
        return Finding("save", "FAIL", f"a checkpoint could not be saved: {part['problem']}", "mend the disk first")
    return Finding("save", "OK", f"{part['bytes'] / 1e6:,.0f} MB in {part['seconds']:.1f} s")


def _error(part: Part, found: dict[str, Part]) -> Finding:
    text, _, advice = str(part["error"]).removeprefix("UserError: ").partition("; ")
    before = [name for name in ("save", "training", "decoding", "sums", "matrix product", "node") if name in found]
    where = f"after the {before[0]}" if before else "at its start"
    return Finding("node job", "FAIL", f"failed {where}: {text}", advice or "correct this, and try again")
