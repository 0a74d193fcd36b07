"""Renders augmented training images: a few images, each unaugmented and as augmented at some steps of a run.

python -m vit.augment --config configs/vit_b16.yaml          # runs/vit_b16-augmented.png

`--step N` shows them in the image size and with the augmentation of that step, where these change during the run.
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vit.augment.pipeline import augment, channel_levels, normalize
from vit.checkpoint.initial_settings import InitialSettings
from vit.config.parser import config_parser, parse_config
from vit.config.paths import user_path
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.user_error import UserError
from vit.data.beton import Beton, open_beton
from vit.data.damage import DamagedSamples
from vit.data.decode import CenterCrop, Decoder, RandomCrop, resolve_decoder
from vit.data.loader import decoded_size
from vit.random_keys import Stream, key
from vit.run.command import print_error, run_command
from vit.run.console import started_as


def config_of_step(cfg: Config, beton: Beton, step: int | None) -> Config:
    """The config of a step; None: of the last one.  Raises UserError if the run has no such step or no images."""
    if not len(beton):
        raise UserError(f"{beton.path} has no images")
    schedule = RunSchedule(cfg, min(cfg.data.limit or len(beton), len(beton)))
    last = schedule.total_steps - 1
    if step is not None and not 0 <= step <= last:
        raise UserError(f"--step must be in 0 to {last}, the steps of this run, not {step}")
    return schedule.config(last if step is None else step)


def contact_sheet(cfg: Config, images: int, draws: int, step: int | None = None) -> tuple[Image.Image, list[str]]:
    """One row for each of the file's first images: its center crop, then `draws` augmented versions.

    Image size and augmentation are those of a step; None: of the last one.  Damaged images are left out; the second
    value has a message for each.  Raises UserError if none is left.
    """
    beton, interpolation = open_beton(cfg.data.train), cfg.data.interpolation
    of_step = config_of_step(cfg, beton, step)
    S, decoded = of_step.model.image_size, decoded_size(cfg, of_step)
    backend, damaged = resolve_decoder(cfg.data.decoder, interpolation), DamagedSamples(beton)
    samples = np.arange(min(images, len(beton)))
    crops = [np.zeros((len(samples), side, side, 3), np.uint8) for side in (S, *draws * (decoded,))]
    whole = np.ones(len(samples), bool)
    random_crop = RandomCrop(cfg.seed, cfg.data.crop_scale, cfg.data.crop_ratio)
    for column in range(1 + draws):
        crop = random_crop if column else CenterCrop(cfg.data.val_crop)
        decoder = Decoder(beton, crop, backend, damaged.skip, interpolation)
        whole &= decoder.decode(np.full_like(samples, max(column - 1, 0)), samples, crops[column]) >= 0
    messages = damaged.take_messages()
    if not whole.any():
        raise UserError("; ".join(messages))
    labels = torch.from_numpy(beton.labels[samples[whole]])
    center, *augmented = (torch.from_numpy(column[whole]) for column in crops)
    columns = [normalize(center, cfg.augment)]
    for draw, batch in enumerate(augmented):
        draw_key = key(Stream.AUGMENT, cfg.seed, draw, 0)
        columns.append(augment(batch, labels, of_step.augment, cfg.model.num_classes, draw_key, side=S)[0])
    grid = torch.stack(columns, dim=1)  # (images, 1 + draws, 3, S, S)
    levels = grid * channel_levels(cfg.augment.std, grid.device) + channel_levels(cfg.augment.mean, grid.device)
    canvas = levels.round().clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 4, 2)  # (images, S, 1 + draws, S, 3)
    return Image.fromarray(canvas.reshape(len(labels) * S, (1 + draws) * S, 3).numpy()), messages


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if an image was damaged, 2 for other errors that the user can fix."""
    parser = config_parser(started_as("vit.augment"), "Renders a few training images as augmented during a run.")
    parser.add_argument("--out", type=user_path, help="image file to write (default: in runs/, named after the config)")
    parser.add_argument("--images", type=int, default=6, help="number of images, one row each (default: 6)")
    parser.add_argument("--draws", type=int, default=7, help="augmented versions of each image (default: 7)")
    parser.add_argument(
        "--step", type=int, help="step of the run to show: image size, augmentation (default: the last)"
    )
    cfg, options = parse_config(parser, list(arguments) if arguments is not None else None, InitialSettings())
    try:
        if min(options.images, options.draws) < 1:
            raise UserError("--images and --draws must be at least 1")
        out = options.out or Path("runs", f"{Path(str(options.config[-1])).stem}-augmented.png")
        if out.suffix.lower() not in Image.registered_extensions():
            raise UserError(f"--out {out}: its extension is not that of an image; use .png, for example")
        sheet, messages = contact_sheet(cfg, options.images, options.draws, options.step)
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except (UserError, OSError) as error:
        print_error("vit.augment", error)
        return 2
    for message in messages:
        print_error("vit.augment", message)
    side = sheet.width // (1 + options.draws)
    print(
        f"wrote {out}: each row is the unaugmented image and {options.draws} augmented versions, {side} x {side} pixels"
    )
    return int(bool(messages))


if __name__ == "__main__":
    run_command(main)
