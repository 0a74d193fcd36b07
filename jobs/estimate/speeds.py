"""Speeds that were measured: how a row of the table, or a past run, is scaled to another config, and how far it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from jobs.estimate.words import about, amount, times
from vit.config.own_files import CONFIGS
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.history.utilization import PEAK_TERAFLOPS, peak_flops, training_flops_per_image
from vit.run.counts import counted

TABLE = CONFIGS / "speeds.yaml"
CPU = "cpu"
TABLE_PENALTY = 0.2  # a past run of this cluster comes before a row of the table that is as near
ASSUMED_PENALTY = 1.5  # what was measured comes before what is assumed, unless it is a factor of 4 away
MUCH_SMALLER = {True: 4.0, False: 2.0}  # whether on a CPU: the ratio of operations from which it is said that
SMALL = "so much smaller a model is probably slower than its operations alone would make it"
SHARED_CORE = 0.7  # a rank that has less of its core shared it with other programs
UNKNOWN = 1e12  # FLOP/s of devices whose peak is not known: only their ratio counts
# How much a setting that differs counts, next to the logarithm of the ratio of operations.
WEIGHTS = {"compile": 0.3, "cuda_graphs": 0.3, "activation_checkpointing": 0.3, "exact": 0.1}
ABOUT_DATA = ("augment.randaugment_ops", "augment.three_augment", "augment.mixup", "augment.cutmix", "data.decoder")
SHAPE = ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second of one rank, and what was measured."""

    name: str  # of the run, or of the row of the table
    source: str  # where it stands
    device: str  # name of the GPU, or "cpu"
    ranks: int
    model: ModelConfig  # with the image size at which it was measured
    settings: Mapping[str, Any] = field(hash=False)  # those that matter to the speed, by dotted name
    images_per_second: float  # of each rank
    core_share: float = 1.0  # of a core that each rank had; on a CPU
    age: float = 0.0  # seconds since it was measured
    is_table: bool = False
    is_assumed: bool = False  # not measured

    @property
    def flops(self) -> float:
        """Operations for each image."""
        return training_flops_per_image(self.model)


@dataclass(frozen=True)
class Scaled:
    """The speed of a config that follows from another one."""

    speed: Speed
    images_per_second: float  # of each rank of the config
    distance: float  # 0: the same computation on the same kind of device
    differences: tuple[str, ...]  # in words
    image_size: int  # of the config
    others: tuple[float, ...] = ()  # what other runs say that are as near


def kind(device: str) -> str:
    """The kind of a device: the key of its peak in `PEAK_TERAFLOPS`, else its name as it is."""
    name = device.replace("_", " ")
    return next((key for key in PEAK_TERAFLOPS if peak_flops(name, "bf16") and key.lower() in name.lower()), name)


def relevant(cfg: Config) -> dict[str, Any]:
    """The settings of a config that matter to its speed, by dotted name."""
    names = ("precision", "micro_batch", *WEIGHTS)
    out: dict[str, Any] = {name: getattr(cfg, name) for name in names}
    for name in ABOUT_DATA:
        section, _, leaf = name.partition(".")
        out[name] = getattr(getattr(cfg, section), leaf)
    return out


def nearest(cfg: Config, device: str, ranks: int, known: Sequence[Speed]) -> Scaled | None:
    """What the speed that is nearest to this config, on this device and number of ranks, says about it.

    `device` is "cpu", the name of a GPU, or "" for a GPU of unknown kind.  None if no speed is comparable.
    """
    found = [scaled for speed in known if (scaled := _scale(cfg, device, ranks, speed)) is not None]
    if not found:
        return None
    best = min(found, key=lambda scaled: (round(scaled.distance, 6), scaled.speed.age))
    equal = [each for each in found if each.distance < best.distance + 1e-6 and each is not best]
    return replace(best, others=tuple(each.images_per_second for each in equal))


def _scale(cfg: Config, device: str, ranks: int, speed: Speed) -> Scaled | None:
    if (device == CPU) != (speed.device == CPU):
        return None
    words, distance = list[str](), TABLE_PENALTY * speed.is_table + ASSUMED_PENALTY * speed.is_assumed
    ratio = speed.flops / training_flops_per_image(cfg.model)
    if any(getattr(cfg.model, name) != getattr(speed.model, name) for name in SHAPE):
        distance += abs(math.log(ratio)) + 0.1
        model = "another model" if _model(cfg.model) != _model(speed.model) else f"{speed.model.image_size} pixels"
        words.append(f"{model}, {times(1 / ratio)} the operations per image")
        words += [SMALL] if ratio > MUCH_SMALLER[speed.device == CPU] else []
    devices, more = _devices(cfg, device, speed)
    distance, words = distance + more[0], words + list(more[1:])
    own = relevant(cfg)
    for name, weight in WEIGHTS.items():
        if name in speed.settings and speed.settings[name] != own[name]:
            distance += weight
            words.append(f"{name} {str(speed.settings[name]).lower()}")
    if (micro := speed.settings.get("micro_batch")) and micro != cfg.micro_batch:
        distance += 0.1 * abs(math.log(micro / cfg.micro_batch))
        words.append(f"micro_batch {micro}")
    if any(speed.settings.get(name, own[name]) != own[name] for name in ABOUT_DATA):
        distance += 0.05
        words.append("other augmentation or decoder")
    if speed.core_share < SHARED_CORE:  # on an idle machine it is faster
        distance += 0.1 * (1 - speed.core_share)
    if speed.ranks != ranks:
        distance += 0.02 * abs(math.log2(ranks / speed.ranks))
    return Scaled(speed, speed.images_per_second * ratio * devices, distance, tuple(words), cfg.model.image_size)


def _devices(cfg: Config, device: str, speed: Speed) -> tuple[float, tuple[Any, ...]]:
    """How much faster the device is for this precision; the distance and the words of the difference."""
    precision = str(speed.settings.get("precision", cfg.precision))
    same_precision = (precision == "float32") == (cfg.precision == "float32") or speed.device == CPU
    name = device or speed.device
    if kind(name) == kind(speed.device) and same_precision:
        return 1.0, (0.0,)
    now, then = peak_flops(name.replace("_", " "), cfg.precision), peak_flops(speed.device, precision)
    ratio = (now or UNKNOWN) / (then or UNKNOWN) if now and then else 1.0
    words = [] if kind(name) == kind(speed.device) else [f"{kind(speed.device)}, not {kind(name)}"]
    words += [] if same_precision else [f"precision {precision}"]
    peaks = f", {times(ratio)} the peak FLOP/s" if now and then else ", whose speeds are not known"
    return ratio, (1.0 + abs(math.log(ratio)), f"{', '.join(words)}{peaks}")


def _model(model: ModelConfig) -> tuple[Any, ...]:
    return tuple(getattr(model, name) for name in SHAPE[1:])


def describe(scaled: Scaled) -> str:
    """Where a speed comes from, and how far it is, in words."""
    speed = scaled.speed
    what = "assumed for" if speed.is_assumed else "measured for" if speed.is_table else "as in run"
    on = f" on {speed.device}" if speed.device != CPU else " on CPUs" if speed.is_table else ""
    where = f" ({speed.source})" if speed.is_table else f", {about(speed.age)} ago" if speed.age else ""
    same = "the same computation" if not scaled.differences else f"which differs: {'; '.join(scaled.differences)}"
    if speed.core_share < SHARED_CORE:
        same += f"; each rank had {speed.core_share:.0%} of a core there"
    rates = scaled.others
    spread = f"; {counted(len(rates), 'other run')} like it: {_span(rates)} images/s" if rates else ""
    return f"{what} {speed.name}{on}{where}, {same}{spread}"


def _span(rates: Sequence[float]) -> str:
    low, high = amount(min(rates)), amount(max(rates))
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Seconds of what is not a step, as they were measured."""

    source: str
    device: str
    start: float  # from the start of a job's process until its first step, without compiling
    compile: float = 0.0  # of the first start
    compile_again: float = 0.0  # of a later one, with the graphs of the first one


@dataclass(frozen=True, kw_only=True)
class SaveTimes:
    """How long a checkpoint of so many bytes took."""

    source: str
    bytes: int
    stall: float  # seconds for which training waits
    write: float  # seconds until it is on the disk
    interval: float = 600.0  # seconds between two


@dataclass(frozen=True)
class Table:
    """What `configs/speeds.yaml` says."""

    speeds: list[Speed]
    overheads: list[Overheads]
    checkpoint: SaveTimes


def read_table(path: Path = TABLE) -> Table:
    """Reads the table."""
    content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    speeds, defaults = [], relevant(Config())
    for row in content["speeds"]:
        settings = {name: row[name] for name in defaults if name in row}
        speed = Speed(
            name=row["name"],
            source=row["source"],
            device=row["device"],
            ranks=1,
            model=replace(ModelConfig(), **row["model"]),
            settings={name: defaults[name] for name in WEIGHTS} | settings,
            images_per_second=row["images_per_second"],
            is_table=True,
            is_assumed=row.get("assumed", False),
        )
        speeds.append(speed)
    rows = [{key: value for key, value in row.items() if key != "name"} for row in content["overheads"]]
    return Table(speeds, [Overheads(**row) for row in rows], SaveTimes(**content["checkpoint"]))
