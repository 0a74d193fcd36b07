"""Renders augmented training images: a few images, each unaugmented and as augmented at some steps of a run.

python -m vit.augment --config configs/vit_b16.yaml --out augment.png
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from vit.augment.pipeline import augment, channel_levels, normalize
from vit.config.parser import config_parser, parse_config
from vit.config.paths import user_path
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.beton import open_beton
from vit.data.decode import CenterCrop, Decoder, RandomCrop, resolve_decoder
from vit.random_keys import Stream, key
from vit.run.command import run_command


def contact_sheet(cfg: Config, images: int, draws: int) -> Image.Image:
    """One row for each of the file's first images: its center crop, then the image as augmented in `draws` steps."""
    beton, S, interpolation = open_beton(cfg.data.train), cfg.model.image_size, cfg.data.interpolation
    backend = resolve_decoder(cfg.data.decoder, interpolation)
    samples = np.arange(min(images, len(beton)))
    labels = torch.from_numpy(beton.labels[samples])
    crops = np.empty((len(samples), S, S, 3), np.uint8)
    center = Decoder(beton, CenterCrop(cfg.data.val_crop), S, backend, interpolation=interpolation)
    center.decode(np.zeros_like(samples), samples, crops)
    columns = [normalize(torch.from_numpy(crops.copy()), cfg.augment)]
    crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
    decoder = Decoder(beton, crop, S, backend, interpolation=interpolation)
    for draw in range(draws):
        decoder.decode(np.full_like(samples, draw), samples, crops)
        draw_key = key(Stream.AUGMENT, cfg.seed, draw, 0)
        columns.append(augment(torch.from_numpy(crops), labels, cfg.augment, cfg.model.num_classes, draw_key)[0])
    grid = torch.stack(columns, dim=1)  # (images, 1 + draws, 3, S, S)
    levels = grid * channel_levels(cfg.augment.std, grid.device) + channel_levels(cfg.augment.mean, grid.device)
    canvas = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 4, 2)  # (images, S, 1 + draws, S, 3)
    return Image.fromarray(canvas.reshape(len(samples) * S, (1 + draws) * S, 3).numpy())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = config_parser("vit.augment", "Renders a few training images as augmented during a run.")
    parser.add_argument("--out", type=user_path, required=True, help="image file to write")
    parser.add_argument("--images", type=int, default=6, help="number of images, one row each (default: 6)")
    parser.add_argument("--draws", type=int, default=7, help="augmented versions of each image (default: 7)")
    cfg, options = parse_config(parser, list(arguments) if arguments is not None else None)
    try:
        if min(options.images, options.draws) < 1:
            raise UserError("--images and --draws must be at least 1")
        contact_sheet(cfg, options.images, options.draws).save(options.out)
    except (UserError, OSError) as error:
        print(f"vit.augment: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}: each row is the unaugmented image and {options.draws} augmented versions")
    return 0


if __name__ == "__main__":
    run_command(main)
