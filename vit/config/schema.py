"""The configuration of a run, as typed dataclasses.  `parser.py` reads them from a YAML file and the command line.

A field's trailing comment is its help text.  Imports no torch, so that commands start quickly on a login node.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from vit.config.batches import wrong_ranks
from vit.config.paths import escape
from vit.config.sections import (
    AugmentConfig,
    CheckpointConfig,
    ChecksConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
)
from vit.config.train_sizes import check_train_sizes
from vit.config.user_error import UserError, require


@dataclass(frozen=True, kw_only=True)
class Config:
    """Seed, initial weights, length, batch sizes, exactness, precision, device and timeout."""

    seed: int = 0  # seed of every random draw
    init_from: str = ""  # initial weights: a run, a checkpoint, a .pth or .safetensors file; empty: random
    init_head: Literal["keep", "new"] = "keep"  # keep: the pretrained head, if it has as many classes; new: a new head
    epochs: int = 300  # passes over the training set; see also epochs_count
    global_batch: int = 1536  # images per optimizer step, over all ranks
    micro_batch: int = 384  # images per forward pass; the number of ranks must divide global_batch / micro_batch
    train_sizes: tuple[tuple[int | float, ...], ...] = ()  # rows: share of the run, side of its images[, micro_batch]
    epochs_count: Literal["images", "pixels"] = "images"  # pixels: an epoch over smaller images is more than one pass
    exact: Literal["bits", "samples"] = "bits"  # identical after interruptions: all bits, or only samples and draws
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # of matrix products; float32: no TF32; weights: float32
    compile: bool = False  # compile the model with torch.compile
    cuda_graphs: bool = False  # launch each micro-batch as one CUDA graph: faster where the CPU limits, more memory
    activation_checkpointing: bool = False  # recompute each block in backward: less memory, about a third more time
    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto: cuda if there is a GPU, else cpu
    timeout_minutes: float = 10.0  # minutes until a collective operation fails, e.g. because a rank was lost
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    checks: ChecksConfig = field(default_factory=ChecksConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed must be in 0 to 2**63 - 1, not {self.seed}")
        for name in ("epochs", "global_batch", "micro_batch", "timeout_minutes"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        batch, micro, warmup = self.global_batch, self.micro_batch, self.optim.warmup_epochs
        require(batch % micro == 0, f"micro_batch {micro} does not divide global_batch {batch}")
        require(warmup < self.epochs, f"optim.warmup_epochs {warmup} must be less than epochs {self.epochs}")
        require(
            not (self.cuda_graphs and self.activation_checkpointing),
            "cuda_graphs true requires activation_checkpointing false: its copies of random states cannot be captured; "
            "a smaller micro_batch saves memory, too",
        )
        smoothing = self.augment.label_smoothing
        require(
            self.optim.loss != "bce" or smoothing == 0,
            f"optim.loss bce requires augment.label_smoothing 0, not {smoothing}: it would make every class positive",
        )
        if self.train_sizes:
            check_train_sizes(self.train_sizes, self.model.image_size, self.model.patch_size, self.global_batch)

    @property
    def stages(self) -> list["Config"]:
        """The config of each row of `train_sizes`, with its image size and micro-batch; itself if there are none."""
        return [
            replace(
                self,
                train_sizes=(),
                micro_batch=int(row[2]) if len(row) > 2 else self.micro_batch,
                model=replace(self.model, image_size=int(row[1])),
            )
            for row in self.train_sizes
        ] or [self]

    @property
    def micro_batches(self) -> int:
        """V, micro-batches per global batch: random draws and the gradient sum depend on V, not on the ranks."""
        return self.global_batch // self.micro_batch

    @property
    def mix_distance(self) -> int:
        """Mixup mixes images this many places apart: repeats of a sample are nearer to each other in a micro-batch."""
        return -(-self.data.repeats // self.micro_batches) if self.augment.mixup or self.augment.cutmix else 1

    def steps(self, epochs: float, samples: int) -> int:
        """Optimizer steps in which each of `samples` images is used `epochs` times; a batch may span two passes.

        With `train_sizes` an epoch may be more than one pass: `RunSchedule.steps` counts those.
        """
        return math.ceil(epochs * samples / self.global_batch)

    def allows_ranks(self, ranks: int) -> bool:
        """Whether `ranks` divides the number of micro-batches, at each of the `train_sizes`."""
        return not any(stage.micro_batches % ranks for stage in self.stages)

    def check_ranks(self, ranks: int) -> None:
        """Raises UserError unless the run `allows_ranks`."""
        mixes = self.augment.mixup or self.augment.cutmix
        for stage in self.stages:
            if stage.micro_batches % ranks:
                repeats = self.data.repeats if mixes else 0
                raise UserError(wrong_ranks(self.global_batch, stage.micro_batch, ranks, repeats))

    def check_mixing(self) -> None:
        """Raises UserError if mixup or CutMix would mix images with themselves.

        Only before training: runs of older versions, which did not check it, can still be evaluated and exported.
        """
        for stage in self.stages if self.augment.mixup or self.augment.cutmix else ():
            few = f"micro_batch {stage.micro_batch} is too small for mixup and cutmix"
            rule = f"which would mix images with themselves; use at least {2 * stage.mix_distance}"
            require(stage.micro_batch >= 2 * stage.mix_distance, f"{few}, {rule}")


# Settings that are paths; `data.stage` is not among them, because it is expanded on each node.
PATHS = ("init_from", "data.train", "data.val")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """All values under their dotted names, as on the command line: `{"model.width": 768, …}`."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            out |= flatten(value, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = str(value) if isinstance(value, Path) else value
    return out


def to_yaml(config: Config) -> str:
    """The whole config as YAML, which `--config` reads back."""
    values = json.loads(json.dumps(asdict(config), default=str))
    for name in PATHS:
        section, _, leaf = name.rpartition(".")
        settings = values[section] if section else values
        settings[leaf] = escape(settings[leaf])
    return yaml.safe_dump(values, sort_keys=False)
