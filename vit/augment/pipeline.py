"""Augmentation of a shard on its device: flip, RandAugment, 3-Augment, erasing, mixup or cutmix, normalisation.

    (B, H, W, 3) uint8, (B,) int64 -> (B, 3, H, W) float32, (B, C) float32

All of it is a pure function of the images and a key, which `vit.random_keys` makes of (seed, step, shard): nothing to
save, nothing to replay.  What is drawn is drawn on the host, so that any device gets the same draws and the host never
waits for it; only erasing's noise comes from a generator on the device.

python -m vit.augment --config configs/vit_b16.yaml --out augment.png    draws what the model sees

Shapes: B images, H, W pixels, C classes.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit.augment import pixel_ops
from vit.augment.mixup import draw_erasing, draw_mix, erase, smooth_targets
from vit.augment.pixel_ops import planes
from vit.augment.randaugment import rand_augment
from vit.augment.three_augment import color_jitter, three_augment
from vit.config.parser import config_parser, parse_config
from vit.config.schema import AugmentConfig, Config
from vit.data.beton import open_beton
from vit.data.decode import CentreCrop, Decoder, RandomCrop, resolve
from vit.random_keys import Stream, key


def augment(images: Tensor, labels: Tensor, cfg: AugmentConfig, num_classes: int, key: int) -> tuple[Tensor, Tensor]:
    """(B, H, W, 3) uint8, (B,) int64 -> (B, 3, H, W) float32 normalised, (B, C) float32 soft targets that sum to 1."""
    B, H, W, _ = images.shape
    random = np.random.Generator(np.random.Philox(key=key))
    images = planes(images, random.random(B) < cfg.flip)  # (B, 3, H, W)
    images = rand_augment(images, cfg, random)
    if cfg.three_augment:
        images = three_augment(images, random)
    if cfg.color_jitter:
        images = color_jitter(images, cfg.color_jitter, random)

    values, targets = _normalise(images, cfg), smooth_targets(labels, num_classes, cfg.label_smoothing)
    if cfg.erasing:
        noise = torch.Generator(images.device).manual_seed(key)
        values = erase(values, draw_erasing(B, H, W, cfg.erasing, random), cfg.erasing_fill, noise)
    if mix := draw_mix(cfg, H, W, random):
        values, targets = mix.images(values), mix.targets(targets)
    return values, targets


def normalise(images: Tensor, cfg: AugmentConfig) -> Tensor:
    """What evaluation does instead: (B, H, W, 3) uint8 -> (B, 3, H, W) float32."""
    return _normalise(planes(images, np.zeros(len(images), np.bool_)), cfg)


def _normalise(images: Tensor, cfg: AugmentConfig) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, H, W) float32."""
    return pixel_ops.normalise(images, _levels(cfg.mean, images.device), _levels(cfg.std, images.device))


@functools.cache  # once for each device: a copy from the host would wait for all that the device has yet to do
def _levels(fractions: tuple[float, float, float], device: torch.device) -> Tensor:
    """A value for each channel, as a grey level: (1, 3, 1, 1) float32."""
    return 255 * torch.tensor(fractions, device=device).view(1, 3, 1, 1)


def picture(cfg: Config, images: int, draws: int) -> Image.Image:
    """A row for each of the file's first images: its centre, then as `draws` steps of a run would show it."""
    beton, S, how = open_beton(cfg.data.train), cfg.model.image_size, cfg.data.interpolation
    kind = resolve(cfg.data.decoder, how)
    samples = np.arange(min(images, len(beton)))
    labels = torch.from_numpy(beton.labels[samples])
    crops = np.empty((len(samples), S, S, 3), np.uint8)
    centre = Decoder(beton, CentreCrop(cfg.data.val_crop), S, kind, interpolation=how)
    centre.decode(np.zeros_like(samples), samples, crops)
    columns = [normalise(torch.from_numpy(crops.copy()), cfg.augment)]
    crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
    decoder = Decoder(beton, crop, S, kind, interpolation=how)
    for draw in range(draws):
        decoder.decode(np.full_like(samples, draw), samples, crops)
        shard = key(Stream.AUGMENT, cfg.seed, draw, 0)
        columns.append(augment(torch.from_numpy(crops), labels, cfg.augment, cfg.model.num_classes, shard)[0])
    grid = torch.stack(columns, dim=1)  # (images, 1 + draws, 3, S, S)
    levels = grid * _levels(cfg.augment.std, grid.device) + _levels(cfg.augment.mean, grid.device)
    canvas = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 4, 2)  # (images, S, 1 + draws, S, 3)
    return Image.fromarray(canvas.reshape(len(samples) * S, (1 + draws) * S, 3).numpy())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = config_parser("vit.augment", "Draws a few training images as the model sees them.")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--images", type=int, default=6, help="rows (default: 6)")
    parser.add_argument("--draws", type=int, default=7, help="columns beside the plain image (default: 7)")
    cfg, options = parse_config(parser, list(arguments) if arguments is not None else None)
    try:
        if min(options.images, options.draws) < 1:
            raise ValueError("--images and --draws must be at least 1")
        picture(cfg, options.images, options.draws).save(options.out)
    except (ValueError, OSError) as error:
        print(f"vit.augment: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}: the plain image, then {options.draws} draws of each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
