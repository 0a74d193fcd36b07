"""The command line of `write_beton`: a source of images, and how to write them."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.recipe import MODES, Recipe
from data_prep.source_options import SOURCES
from data_prep.sources.file_patterns import expand_files
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.data.image_file import MAX_MEGAPIXELS
from vit.run.console import adapted, started_as

_DESCRIPTION = """\
Write images and their labels into one .beton file, which FFCV's Loader reads.
Its manifest, FILE.json, records the classes, settings and SHA-256 digests.

For the options of a source:  python -m data_prep.write_beton SOURCE --help
"""
_EPILOG = """\
A file under its final name is always complete. If the command is killed or fails,
run the same command again: it resumes where it was. If the file is already
complete and its images have not changed, nothing is done. The same images,
options and library versions always give the same bytes.

exit codes:
  0    the file was written now or by an earlier command
  1    the file could not be written; one line on stderr says why
  2    wrong usage
  130  interrupted

examples:
  python -m data_prep.write_beton imagefolder PATH --out data/train.beton
  python -m data_prep.write_beton ilsvrc ILSVRC2012_img_train.tar \\
      --out data/imagenet/train.beton
  python -m data_prep.write_beton ilsvrc ILSVRC2012_img_val.tar \\
      --devkit ILSVRC2012_devkit_t12.tar.gz --out data/imagenet/val.beton
  python -m data_prep.write_beton kaggle PATH --split train \\
      --out data/imagenet/train.beton
  python -m data_prep.write_beton parquet 'data/train-*.parquet' \\
      --out data/train.beton
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with their `recipe` and with `open_source()`, which opens the source.  Exits with 2 for usage.

    `may_download` says whether the source can be downloaded, which `open_source(**without_download)` does not do;
    `check_files()` raises InputError if patterns of files match none.
    """
    parser = _build_parser()
    args = parser.parse_args(arguments)
    name, args.open_source = args.open_options(args)
    args.without_download = {"fetch": False} if args.may_download else {}
    args.check_files = partial(expand_files, args.files, args.suffix)
    try:
        if args.workers < 1:
            raise ValueError(f"workers must be at least 1 process, not {args.workers}")
        args.recipe = Recipe(
            source=name,
            mode=args.mode,
            max_resolution=args.max_resolution,
            quality=args.quality,
            reencode=args.reencode,
            compress_probability=args.compress_probability,
            seed=args.seed,
            shuffle=args.shuffle,
            limit=args.limit,
            subset=args.subset,
            per_class=args.per_class,
            max_megapixels=args.max_megapixels,
            on_bad=args.on_bad,
        )
    except ValueError as error:
        parser.error(str(error))
    return args


def _build_parser() -> CommandParser:
    raw_text = argparse.RawDescriptionHelpFormatter
    parser = CommandParser(
        prog=started_as("python -m data_prep.write_beton"),
        description=adapted(_DESCRIPTION),
        epilog=adapted(_EPILOG),
        formatter_class=raw_text,
    )
    sources = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE", title="sources")

    for source in SOURCES:
        options = sources.add_parser(
            source.name, help=source.about, description=f"Write a .beton file from {source.about}."
        )
        _add_output_options(options)
        _add_storage_options(options, source.mode)
        _add_selection_options(options, source.shuffle)
        options.set_defaults(may_download=source.may_download, files=(), suffix="")
        options.set_defaults(open_options=source.add_options(options))
    return parser


def _file_path(text: str | Path) -> Path:
    """A path that does not end as that of a folder, which would be written as a file of this name."""
    if str(text).endswith(os.sep):
        raise argparse.ArgumentTypeError(f"{text} is a folder; give the name of the file to write")
    return user_path(text)


def _add_output_options(parser: CommandParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=_file_path,
        required=True,
        metavar="FILE",
        help="the .beton file to write; its manifest is FILE.json",
    )
    group.add_argument(
        "--force",
        action="store_true",
        help="replace FILE if it exists; start over instead of resuming an unfinished one",
    )
    group.add_argument(
        "--ignore-times",
        action="store_true",
        help="accept an existing FILE if its images have the same names and sizes, but other modification times",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes that decode and encode images; the file does not depend on N (default: one per available core)",
    )


def _add_storage_options(parser: CommandParser, mode: str) -> None:
    group = parser.add_argument_group("how images are stored")
    group.add_argument(
        "--mode",
        choices=MODES,
        default=mode,
        help="jpg: store JPEGs; raw: store uncompressed pixels, which take more disk space but are faster to read; "
        f"proportion: store each image as either, at random (default: {mode})",
    )
    group.add_argument(
        "--max-resolution",
        type=int,
        default=500,
        metavar="PIXELS",
        help="scale larger images down so that their longer side has PIXELS pixels, 1 to 4096 (default: 500)",
    )
    group.add_argument(
        "--quality", type=int, default=90, metavar="Q", help="quality of encoded JPEGs, 1 to 100 (default: 90)"
    )
    group.add_argument(
        "--reencode",
        action="store_true",
        help="encode all images; by default, baseline JPEGs that need no scaling are copied unchanged",
    )
    group.add_argument(
        "--compress-probability",
        type=float,
        default=0.5,
        metavar="P",
        help="with --mode proportion: probability that an image is stored as a JPEG, 0 to 1 (default: 0.5)",
    )


def _add_selection_options(parser: CommandParser, shuffle: bool) -> None:
    group = parser.add_argument_group("which images, and in which order")
    group.add_argument(
        "--subset",
        type=int,
        metavar="N",
        help="write only N classes, chosen at random; training and validation get the same ones from the same --seed",
    )
    group.add_argument("--per-class", type=int, metavar="N", help="write only N images of each class, chosen at random")
    group.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="write only the first N samples, counted after shuffling, if they are shuffled",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of all random choices (default: 0)")
    group.add_argument(
        "--shuffle",
        action=argparse.BooleanOptionalAction,
        default=shuffle,
        help="shuffle the samples, or keep the order of the source, which is class by class for folders and ImageNet "
        f"(default: --{'' if shuffle else 'no-'}shuffle)",
    )
    group.add_argument(
        "--max-megapixels",
        type=int,
        default=MAX_MEGAPIXELS,
        metavar="N",
        help="refuse images of more than N million pixels, which take 3 N MB of memory or more in each worker "
        f"(default: {MAX_MEGAPIXELS}, the limit of Pillow)",
    )
    group.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="what to do if an image cannot be used: fail, or skip it and list it in the manifest (default: fail)",
    )
