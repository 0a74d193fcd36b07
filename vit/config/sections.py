"""The sections of a run's configuration: model, data, augmentation, optimizer, checkpoints, checks, logs.

A field's trailing comment is its help text.  Imports no torch, so that commands start quickly on a login node.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit.config.user_error import require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Vision Transformer.  The defaults are ViT-B/16."""

    image_size: int = 224  # height and width of the input, in pixels
    patch_size: int = 16  # side of a patch, in pixels; must divide image_size
    width: int = 768  # embedding dimension of a token; must be divisible by heads
    depth: int = 12  # number of transformer blocks
    heads: int = 12  # attention heads per block
    mlp_dim: int = 3072  # hidden dimension of each block's MLP
    num_classes: int = 1000  # number of classes of the data set
    pool: Literal["cls", "mean"] = "cls"  # input of the head: the class token, or the mean of all patch tokens
    positions: Literal["learned", "sincos2d"] = "learned"  # position embedding: learned, or fixed 2-D sine-cosine
    dropout: float = 0.0  # dropout probability after the embedding, the attention and each layer of the MLP
    attention_dropout: float = 0.0  # dropout probability on the attention weights
    drop_path: float = 0.0  # stochastic depth: probability of dropping the last block's residual branches
    drop_path_rule: Literal["linear", "uniform"] = "linear"  # per-block rate: linear ramp from 0, or constant
    layer_scale: float = 0.0  # LayerScale: initial value of the learned per-channel factors; 0: no LayerScale

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim", "num_classes"):
            require(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")
        for name in ("dropout", "attention_dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, f"model.{name} must be in [0, 1), not {getattr(self, name)}")
        require(self.layer_scale >= 0, f"model.layer_scale must not be negative, not {self.layer_scale}")
        size, patch, width, heads = self.image_size, self.patch_size, self.width, self.heads
        require(size % patch == 0, f"model.patch_size {patch} does not divide model.image_size {size}")
        require(width % heads == 0, f"model.heads {heads} does not divide model.width {width}")
        if self.positions == "sincos2d":
            require(
                width % 4 == 0 and width > 4,
                f"model.positions sincos2d requires a model.width of 8, 12, …, not {width}",
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data sets, how they are read, and the crops."""

    train: Path = Path("data/imagenet/train.beton")  # training set, written by data_prep.write_beton
    val: Path = Path("data/imagenet/val.beton")  # validation set, written by data_prep.write_beton
    limit: int = 0  # number of images to use from each set, the first ones; 0: all of them
    workers: int = 0  # decoding threads per rank; 0: an equal share of the CPU cores available on the node
    prefetch: int = 3  # batches decoded ahead
    decoder: Literal["auto", "native", "scaled", "ffcv"] = "auto"  # scaled: faster, inexact; auto: native, else ffcv
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # resize filter, antialiased; not for decoder ffcv
    small_images: Literal["decoded", "lanczos"] = "decoded"  # train_sizes: crops of that size; lanczos: resized crops
    cache: Literal["os", "process", "memory"] = "os"  # page cache; reads of each rank; memory, one copy per node
    shuffle_window: int = 0  # images per shuffling window, for files larger than memory; 0: shuffle the whole set
    repeats: int = 1  # repeated augmentation: times that each image is in a batch, with different crops; 1: off
    on_bad: Literal["fail", "skip"] = "fail"  # damaged image: end the run, or replace it by the next of its class
    stage: str = ""  # folder on each node's local disk, e.g. /tmp or $TMPDIR, to copy the sets to; empty: do not copy
    verify: Literal["first-epoch", "never"] = "first-epoch"  # check the file's digests while it is first read
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of a random crop relative to the image, [min, max]
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)  # aspect ratio of a random crop, width / height, [min, max]
    val_crop: float = 0.875  # validation: side of the center crop / image's shorter side; 0.875 is 224 of 256

    def __post_init__(self) -> None:
        scale, ratio = self.crop_scale, self.crop_ratio
        require(0 < scale[0] <= scale[1] <= 1, f"data.crop_scale must be 0 < min <= max <= 1, not {scale}")
        require(0 < ratio[0] <= ratio[1], f"data.crop_ratio must be 0 < min <= max, not {ratio}")
        require(0 < self.val_crop <= 1, f"data.val_crop must be in (0, 1], not {self.val_crop}")
        require(
            self.stage[:1] in ("", "/", "$", "~"),
            f"data.stage must be an absolute path on each node, or start with a variable, not {self.stage}",
        )
        # FFCV's decoder has no filter to choose: it averages areas.
        bicubic = self.decoder == "ffcv" and self.interpolation == "bicubic"
        require(not bicubic, "data.interpolation bicubic requires data.decoder auto, native or scaled, not ffcv")
        require(self.limit >= 0, f"data.limit must not be negative, not {self.limit}")
        require(self.workers >= 0, f"data.workers must not be negative, not {self.workers}")
        require(self.prefetch >= 1, f"data.prefetch must be at least 1, not {self.prefetch}")
        require(self.repeats >= 1, f"data.repeats must be at least 1, not {self.repeats}")
        window = self.shuffle_window
        require(window >= 0 and window % 64 == 0, f"data.shuffle_window must be a multiple of 64, not {window}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the crops, on the device, one micro-batch at a time."""

    flip: float = 0.5  # probability of a horizontal flip
    randaugment_ops: int = 0  # RandAugment: operations per image; 0: none
    randaugment: Literal["torchvision", "timm"] = "torchvision"  # implementation; timm's skips half of the operations
    randaugment_magnitude: int = 9  # RandAugment: magnitude, 0 to 30 for torchvision's, 0 to 10 for timm's
    randaugment_ramp: bool = False  # the magnitude rises from 0 to randaugment_magnitude, in equal parts of the run
    randaugment_deviation: float = 0.0  # RandAugment: standard deviation of each image's magnitude; only for timm's
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0: none
    cutmix: float = 0.0  # alpha of CutMix's Beta distribution; 0: none; with mixup, each micro-batch draws one of them
    label_smoothing: float = 0.0  # share of the target that is spread evenly over all classes
    three_augment: bool = False  # DeiT-III's 3-Augment: each image is made grayscale, solarized or blurred
    color_jitter: float = 0.0  # maximum relative change of brightness, contrast and saturation; 0: none
    erasing: float = 0.0  # probability of random erasing, for each image
    erasing_fill: Literal["noise", "mean"] = "noise"  # erased pixels: Gaussian noise, or the mean of each channel
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # subtracted from each channel; pixels are in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # divides each channel after the mean was subtracted

    def __post_init__(self) -> None:
        require(0 <= self.flip <= 1, f"augment.flip must be in [0, 1], not {self.flip}")
        for name in ("randaugment_ops", "mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"augment.{name} must not be negative, not {getattr(self, name)}")
        magnitude, maximum = self.randaugment_magnitude, {"torchvision": 30, "timm": 10}[self.randaugment]
        require(
            0 <= magnitude <= maximum,
            f"augment.randaugment_magnitude must be in 0 to {maximum} for {self.randaugment}, not {magnitude}",
        )
        deviation = self.randaugment_deviation
        require(deviation >= 0, f"augment.randaugment_deviation must not be negative, not {deviation}")
        timm = self.randaugment == "timm"
        require(timm or not deviation, "augment.randaugment_deviation requires augment.randaugment timm")
        require(0 <= self.erasing <= 1, f"augment.erasing must be in [0, 1], not {self.erasing}")
        require(0 <= self.color_jitter <= 1, f"augment.color_jitter must be in [0, 1], not {self.color_jitter}")
        require(0 <= self.label_smoothing < 1, f"augment.label_smoothing must be in [0, 1), not {self.label_smoothing}")
        require(min(self.std) > 0, f"augment.std must be positive, not {self.std}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The loss, the optimizer, and its learning rate as a function of the step."""

    loss: Literal["cross-entropy", "bce"] = "cross-entropy"  # bce: binary cross-entropy, all mixed-in classes positive
    optimizer: Literal["adamw", "lamb", "muon"] = "adamw"  # lamb: steps scaled to norms; muon: orthogonalized steps
    lr: float = 1e-3  # peak learning rate for the global batch as given; never rescaled to the batch size
    weight_decay: float = 0.1  # decoupled weight decay, multiplied by the learning rate
    decayed: Literal["matrices", "all"] = "matrices"  # matrices: no decay of norms, biases, class token, positions
    beta1: float = 0.9  # decay rate of the gradient's moving average
    beta2: float = 0.999  # decay rate of the squared gradient's moving average
    eps: float = 1e-8  # added to the square root of the second moment
    momentum: float = 0.95  # muon: decay rate of the moving average of the gradients of the blocks' matrices
    warmup_epochs: float = 0.0  # epochs of linear warmup from warmup_lr to lr; a cosine decay to final_lr follows
    warmup_lr: float = 0.0  # learning rate at the start of warmup
    final_lr: float = 0.0  # learning rate at the last step
    layer_decay: float = 1.0  # learning rate of a block / that of the next block, for fine-tuning; 1: the same for all
    clip_norm: float = 0.0  # maximum norm of the gradient, over all weights together; 0: no clipping
    ema_decay: float = 0.0  # decay of the EMA of the weights, per step; 0: no EMA
    ema_warmup: Literal["none", "copy", "ramp"] = "none"  # copy: start after warmup; ramp: decay <= (1 + n) / (10 + n)
    max_skipped: int = 10  # steps that may be skipped because loss or gradient was not finite; one more ends the run

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"optim.lr must be positive and finite, not {self.lr}")
        for name in ("weight_decay", "eps", "warmup_epochs", "warmup_lr", "final_lr", "clip_norm"):
            require(getattr(self, name) >= 0, f"optim.{name} must not be negative, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "momentum", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} must be in [0, 1), not {getattr(self, name)}")
        require(self.optimizer == "muon" or self.momentum == 0.95, "optim.momentum requires optim.optimizer muon")
        require(self.max_skipped >= 0, f"optim.max_skipped must not be negative, not {self.max_skipped}")
        require(0 < self.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], not {self.layer_decay}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept.  A stop signal always saves."""

    every_minutes: float = 0.0  # minutes between checkpoints; 0: chosen from 1 to 30, by the measured cost of a save
    expected_failure_hours: float = 24.0  # mean hours between failures without warning, to choose every_minutes from
    keep: int = 2  # newest checkpoints to keep; the best one by validation is kept as well
    keep_every_epochs: float = 0.0  # epochs between checkpoints that are never removed; 0: none

    def __post_init__(self) -> None:
        for name in ("every_minutes", "keep_every_epochs"):
            require(getattr(self, name) >= 0, f"checkpoint.{name} must not be negative, not {getattr(self, name)}")
        hours = self.expected_failure_hours
        require(hours > 0, f"checkpoint.expected_failure_hours must be positive, not {hours}")
        require(self.keep >= 1, f"checkpoint.keep must be at least 1, not {self.keep}")


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """How often ranks compare their results and times, to find hardware that computes wrong values or is slow.

    They also compare checksums before each checkpoint, unless checksum_every_steps is 0.
    """

    checksum_every_steps: int = 100  # steps between comparisons of the ranks' weights and optimizer states; 0: never
    recompute_every_steps: int = 2000  # steps until each rank repeats a gradient of another one; 0: never
    slow_rank_seconds: float = 60.0  # window over which the ranks' times for their parts of a step are compared; 0: off
    slow_rank_ratio: float = 1.2  # a rank is reported as slow from this many times the median rank's time on

    def __post_init__(self) -> None:
        seconds, ratio = self.slow_rank_seconds, self.slow_rank_ratio
        require(seconds >= 0, f"checks.slow_rank_seconds must not be negative, not {seconds}")
        require(ratio > 1, f"checks.slow_rank_ratio must be more than 1, not {ratio}")
        for name in ("checksum_every_steps", "recompute_every_steps"):
            require(getattr(self, name) >= 0, f"checks.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Metrics and evaluation."""

    every_steps: int = 50  # steps between records in metrics.jsonl
    eval_every_epochs: float = 1.0  # epochs between evaluations; the last step is always evaluated
    samples: bool = False  # record the indices of the samples of each step in samples.jsonl
    wandb: Literal["off", "offline", "online"] = "off"  # also log to Weights & Biases; offline: to be sent later
    wandb_project: str = "vit"  # Weights & Biases project

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, f"log.every_steps must be at least 1, not {self.every_steps}")
        require(self.eval_every_epochs > 0, f"log.eval_every_epochs must be positive, not {self.eval_every_epochs}")
