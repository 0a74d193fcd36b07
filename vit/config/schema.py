"""What a run is: typed values.  `settings.py` reads them from a YAML file and the command line.

A field's trailing comment is its help text.  No torch: a login node must answer at once.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Vision Transformer.  The defaults are ViT-B/16."""

    image_size: int = 224  # pixels, square
    patch_size: int = 16  # pixels; must divide image_size
    width: int = 768  # features of a token; heads must divide it
    depth: int = 12  # blocks
    heads: int = 12  # attention heads in each block
    mlp_dim: int = 3072  # hidden features of each block's MLP
    num_classes: int = 1000  # logits; the data set's number of classes
    pool: Literal["cls", "mean"] = "cls"  # what the head reads: the class token, or the mean of all patches
    positions: Literal["learned", "sincos2d"] = "learned"  # position embedding: learned, or fixed 2-D sines
    dropout: float = 0.0  # probability, after the embedding, the attention and each layer of the MLP
    attention_dropout: float = 0.0  # probability, on the attention weights
    drop_path: float = 0.0  # probability of skipping the last block's branches
    drop_path_rule: Literal["linear", "uniform"] = "linear"  # that of the others: linear, from 0 at the first; the same
    layer_scale: float = 0.0  # first value of a learned factor on each feature that a branch adds; 0: no such factor

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim", "num_classes"):
            _check(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")
        for name in ("dropout", "attention_dropout", "drop_path"):
            _check(0 <= getattr(self, name) < 1, f"model.{name} must be in [0, 1), not {getattr(self, name)}")
        _check(self.layer_scale >= 0, f"model.layer_scale must not be negative, not {self.layer_scale}")
        size, patch, width, heads = self.image_size, self.patch_size, self.width, self.heads
        _check(size % patch == 0, f"model.patch_size {patch} does not divide model.image_size {size}")
        _check(width % heads == 0, f"model.heads {heads} does not divide model.width {width}")
        if self.positions == "sincos2d":
            _check(width % 4 == 0 and width > 4, f"sincos2d needs a model.width of 8, 12, …; not {width}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are and how they are cropped."""

    train: Path = Path("data/imagenet/train.beton")  # written by data_prep.write_beton
    val: Path = Path("data/imagenet/val.beton")  # written by data_prep.write_beton
    limit: int = 0  # images used of each set, its first ones; 0: all of them
    workers: int = 0  # decoding threads for each rank; 0: the cores that this process may use, shared among ranks
    prefetch: int = 3  # batches decoded ahead
    decoder: Literal["auto", "native", "scaled", "ffcv"] = "auto"  # exact; faster for large images; FFCV's; auto: exact
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of crops and of validation, antialiased; not for ffcv
    cache: Literal["os", "process", "memory"] = "os"  # page cache; each rank's own reads; all in each node's memory
    shuffle_window: int = 0  # images shuffled together, in blocks of neighbors, for files that do not fit; 0: all
    repeats: int = 1  # times that each image is in a batch, cropped anew: repeated augmentation
    on_bad: Literal["fail", "skip"] = "fail"  # a damaged image: ends the run, or the next of its class replaces it
    stage: str = ""  # folder of each node's own disk, as /tmp or $TMPDIR, to copy the sets to first; empty: none
    verify: Literal["first-epoch", "never"] = "first-epoch"  # the file's digests, page by page while it is first read
    crop_scale: tuple[float, float] = (0.08, 1.0)  # random crop's area over the image's, least and greatest
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # random crop's width over its height, least and greatest
    val_crop: float = 0.875  # side of the center crop over the image's shorter side; 0.875 is 224 of 256

    def __post_init__(self) -> None:
        scale, ratio = self.crop_scale, self.crop_ratio
        _check(0 < scale[0] <= scale[1] <= 1, f"data.crop_scale must be 0 < least <= greatest <= 1, not {scale}")
        _check(0 < ratio[0] <= ratio[1], f"data.crop_ratio must be 0 < least <= greatest, not {ratio}")
        _check(0 < self.val_crop <= 1, f"data.val_crop must be in (0, 1], not {self.val_crop}")
        _check(
            self.stage[:1] in ("", "/", "$", "~"),
            f"data.stage must be an absolute path on each node, or begin with a variable, not {self.stage}",
        )
        bicubic = self.decoder == "ffcv" and self.interpolation == "bicubic"  # it averages areas, whatever is asked for
        _check(not bicubic, "data.interpolation bicubic needs data.decoder auto, native or scaled, not ffcv")
        _check(self.limit >= 0, f"data.limit must not be negative, not {self.limit}")
        _check(self.workers >= 0, f"data.workers must not be negative, not {self.workers}")
        _check(self.prefetch >= 1, f"data.prefetch must be at least 1, not {self.prefetch}")
        _check(self.repeats >= 1, f"data.repeats must be at least 1, not {self.repeats}")
        window = self.shuffle_window
        _check(window >= 0 and window % 64 == 0, f"data.shuffle_window must be a multiple of 64, not {window}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to the crops, on the device, batch by batch."""

    flip: float = 0.5  # probability of a horizontal flip
    randaugment_ops: int = 0  # RandAugment's operations on each image; 0: none
    randaugment: Literal["torchvision", "timm"] = "torchvision"  # whose; timm's does each operation half of the time
    randaugment_magnitude: int = 9  # RandAugment's strength: 0 to 30 for torchvision's, 0 to 10 for timm's
    randaugment_deviation: float = 0.0  # standard deviation of each image's magnitude from it; for timm's
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0: none
    cutmix: float = 0.0  # alpha of cutmix's Beta distribution; 0: none. With mixup too, one of them is drawn
    label_smoothing: float = 0.0  # share of the target spread evenly over all classes
    three_augment: bool = False  # DeiT-III's 3-Augment: each image made gray, solarized or blurred
    color_jitter: float = 0.0  # greatest change of brightness, contrast and saturation, as a share; 0: none
    erasing: float = 0.0  # probability of random erasing
    erasing_fill: Literal["noise", "mean"] = "noise"  # what is erased becomes normal noise, or each channel's mean
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of each channel, subtracted; images are in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # of each channel, divided by

    def __post_init__(self) -> None:
        _check(0 <= self.flip <= 1, f"augment.flip must be in [0, 1], not {self.flip}")
        for name in ("randaugment_ops", "mixup", "cutmix"):
            _check(getattr(self, name) >= 0, f"augment.{name} must not be negative, not {getattr(self, name)}")
        strength, whose = self.randaugment_magnitude, self.randaugment
        greatest = {"torchvision": 30, "timm": 10}[whose]
        wrong = f"augment.randaugment_magnitude must be in 0 to {greatest} for {whose}'s, not {strength}"
        _check(0 <= strength <= greatest, wrong)
        deviation = self.randaugment_deviation
        _check(deviation >= 0, f"augment.randaugment_deviation must not be negative, not {deviation}")
        _check(not deviation or whose == "timm", "augment.randaugment_deviation needs augment.randaugment timm")
        _check(0 <= self.erasing <= 1, f"augment.erasing must be in [0, 1], not {self.erasing}")
        _check(0 <= self.color_jitter <= 1, f"augment.color_jitter must be in [0, 1], not {self.color_jitter}")
        _check(0 <= self.label_smoothing < 1, f"augment.label_smoothing must be in [0, 1), not {self.label_smoothing}")
        _check(min(self.std) > 0, f"augment.std must be positive, not {self.std}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The loss, the optimizer, and its learning rate as a function of the step."""

    loss: Literal["cross-entropy", "bce"] = "cross-entropy"  # bce: each class by itself; all that are mixed in count
    optimizer: Literal["adamw", "lamb"] = "adamw"  # lamb: AdamW whose step is in proportion to each matrix's norm
    lr: float = 1e-3  # peak learning rate, for the global batch as it is: it is never rescaled
    weight_decay: float = 0.1  # decoupled from the gradient, times the learning rate
    decayed: Literal["matrices", "all"] = "matrices"  # matrices: not norms, biases, the class token and positions
    beta1: float = 0.9  # decay of the gradient's mean
    beta2: float = 0.999  # decay of the gradient's mean square
    eps: float = 1e-8  # added to the root of the mean square
    warmup_epochs: float = 0.0  # epochs of linear warm-up from warmup_lr; then a cosine to final_lr
    warmup_lr: float = 0.0  # learning rate that the warm-up starts from
    final_lr: float = 0.0  # learning rate at the last step
    layer_decay: float = 1.0  # learning rate of a block over that of the block above it, for fine-tuning; 1: the same
    clip_norm: float = 0.0  # greatest norm of the gradient of all weights together; 0: no clipping
    ema_decay: float = 0.0  # decay at each step of the averaged weights; 0: none are kept
    ema_warmup: Literal["none", "copy", "ramp"] = "none"  # copy: averages after warm-up; ramp: (1 + n) / (10 + n) first
    max_skipped: int = 10  # steps left out as their loss or gradient was not finite; one more ends the run

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, f"optim.lr must be positive and finite, not {self.lr}")
        for name in ("weight_decay", "eps", "warmup_epochs", "warmup_lr", "final_lr", "clip_norm"):
            _check(getattr(self, name) >= 0, f"optim.{name} must not be negative, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema_decay"):
            _check(0 <= getattr(self, name) < 1, f"optim.{name} must be in [0, 1), not {getattr(self, name)}")
        _check(self.max_skipped >= 0, f"optim.max_skipped must not be negative, not {self.max_skipped}")
        _check(0 < self.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], not {self.layer_decay}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved, and what is kept.  A signal saves at once."""

    every_minutes: float = 0.0  # between two checkpoints; 0: chosen, 1 to 30, from what a save is measured to cost
    expected_failure_hours: float = 24.0  # between two failures without warning, from which every_minutes is chosen
    keep: int = 2  # newest checkpoints kept; the best one by validation stays besides
    keep_every_epochs: float = 0.0  # epochs between two checkpoints that are kept for good; 0: none

    def __post_init__(self) -> None:
        for name in ("every_minutes", "keep_every_epochs"):
            _check(getattr(self, name) >= 0, f"checkpoint.{name} must not be negative, not {getattr(self, name)}")
        hours = self.expected_failure_hours
        _check(hours > 0, f"checkpoint.expected_failure_hours must be positive, not {hours}")
        _check(self.keep >= 1, f"checkpoint.keep must be at least 1, not {self.keep}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written down."""

    every_steps: int = 50  # steps between two lines of metrics.jsonl
    eval_every_epochs: float = 1.0  # epochs between two evaluations; the last step is always evaluated
    samples: bool = False  # write down which samples each step used, in samples.jsonl
    wandb: Literal["off", "offline", "online"] = "off"  # Weights & Biases
    wandb_project: str = "vit"  # project there

    def __post_init__(self) -> None:
        _check(self.every_steps >= 1, f"log.every_steps must be at least 1, not {self.every_steps}")
        _check(self.eval_every_epochs > 0, f"log.eval_every_epochs must be positive, not {self.eval_every_epochs}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained, and how it is spread over ranks."""

    seed: int = 0  # of every random draw
    init_from: str = ""  # where the first weights are from: a run, a checkpoint, .pth or .safetensors; empty: random
    epochs: int = 300  # passes over the training set
    global_batch: int = 1536  # images of an optimizer step, all ranks together
    micro_batch: int = 384  # images that one rank runs at once; ranks must divide global_batch / micro_batch
    exact: Literal["bits", "samples"] = "bits"  # what interruptions never change: all bits, or samples and draws alone
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # of matrix products; weights stay float32
    compile: bool = False  # torch.compile
    device: Literal["auto", "cuda", "cpu"] = "auto"  # auto: cuda where there is a GPU
    timeout_minutes: float = 10.0  # after which a collective that waits for a lost rank gives up
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**63, f"seed must be in 0 to 2**63 - 1, not {self.seed}")
        for name in ("epochs", "global_batch", "micro_batch", "timeout_minutes"):
            _check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        batch, micro, warmup = self.global_batch, self.micro_batch, self.optim.warmup_epochs
        _check(batch % micro == 0, f"micro_batch {micro} does not divide global_batch {batch}")
        _check(warmup < self.epochs, f"optim.warmup_epochs {warmup} must be less than epochs {self.epochs}")
        smoothed = self.optim.loss == "bce" and self.augment.label_smoothing > 0  # every class would be a right one
        _check(not smoothed, f"optim.loss bce wants augment.label_smoothing 0, not {self.augment.label_smoothing}")

    @property
    def micro_batches(self) -> int:
        """V, the micro-batches of a global batch: the unit that random draws and the sum of gradients are tied to."""
        return self.global_batch // self.micro_batch

    def steps(self, epochs: float, samples: int) -> int:
        """Optimizer steps that use each of `samples` images `epochs` times; a batch may straddle two epochs."""
        return math.ceil(epochs * samples / self.global_batch)

    def check_ranks(self, ranks: int) -> None:
        """Raises ValueError unless `ranks` divides the micro-batches."""
        allowed = [n for n in range(1, self.micro_batches + 1) if self.micro_batches % n == 0]
        _check(
            self.micro_batches % ranks == 0,
            f"{ranks} ranks do not divide the {self.micro_batches} micro-batches of a batch "
            f"(global_batch {self.global_batch} / micro_batch {self.micro_batch}); "
            f"use {', '.join(map(str, allowed))} ranks or another micro_batch",
        )


# What a resumed run may change freely: where things are and how often they are looked at, never what is computed.
NOT_THE_RECIPE = (
    *("data.train", "data.val", "data.workers", "data.prefetch", "data.cache", "data.on_bad", "data.verify"),
    *("data.stage", "device", "timeout_minutes", "optim.max_skipped"),
)
NOT_THE_RECIPE_ROOMS = ("checkpoint.", "log.")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """`{"model.width": 768, …}`: each value under the name that overrides it."""
    out: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            out |= flatten(value, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = str(value) if isinstance(value, Path) else value
    return out


def recipe(config: Config) -> dict[str, Any]:
    """The values that decide what a run computes, as JSON would hold them."""
    out = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config).items()
        if name not in NOT_THE_RECIPE and not name.startswith(NOT_THE_RECIPE_ROOMS)
    }
    if config.init_from:  # the same place, from wherever it is looked at
        out["init_from"] = str(Path(config.init_from).expanduser().absolute())
    return out


def to_yaml(config: Config) -> str:
    """The whole config as a YAML file that `--config` reads back."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(config), default=str)), sort_keys=False)
