"""The command line of `write_beton`: a source, and how to write it."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data_prep.recipe import MODES, Recipe
from data_prep.sources.fashion_mnist import fashion_mnist
from data_prep.sources.folders import image_folder
from data_prep.sources.imagenet import ilsvrc, kaggle


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with `recipe` made of them and `images()`, which opens their source.  Leaves with 2 for usage."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.kind == "imagefolder":
        name = f"imagefolder {os.path.abspath(args.path)}"
        args.images = partial(image_folder, args.path)
    elif args.kind == "ilsvrc":
        name = f"ilsvrc {os.path.abspath(args.tar)}"
        args.images = partial(ilsvrc, args.tar, args.devkit, args.synsets)
    elif args.kind == "kaggle":
        name = f"kaggle {os.path.abspath(args.root)} {args.split}"
        args.images = partial(kaggle, args.root, args.split)
    else:
        name = f"fashion-mnist {args.split}"
        args.images = partial(fashion_mnist, args.split, args.root)
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
            shuffle=not args.no_shuffle,
            limit=args.limit,
            subset=args.subset,
            per_class=args.per_class,
            on_bad=args.on_bad,
        )
    except ValueError as error:
        parser.error(str(error))
    return args


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .beton file to write")
    common.add_argument("--max-resolution", type=int, default=500, metavar="PIXELS", help="longest side (500)")
    common.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 100 (90)")
    common.add_argument("--reencode", action="store_true", help="encode JPEGs again that could be copied as they are")
    common.add_argument(
        "--compress-probability", type=float, default=0.5, metavar="P", help="share of JPEGs in mode proportion (0.5)"
    )
    common.add_argument("--subset", type=int, metavar="N", help="only N classes, drawn by the seed")
    common.add_argument("--per-class", type=int, metavar="N", help="only N images of each class, drawn by the seed")
    common.add_argument("--seed", type=int, default=0, help="of the order of the samples in the file, and of draws (0)")
    common.add_argument("--no-shuffle", action="store_true", help="keep the source's order")
    common.add_argument("--limit", type=int, metavar="N", help="only the first N samples of that order")
    common.add_argument(
        "--on-bad",
        choices=("fail", "skip"),
        default="fail",
        help="a bad image ends it, or is left out",
    )
    common.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
    common.add_argument("--force", action="store_true", help="replace a file that is there")

    parser = argparse.ArgumentParser(prog="python -m data_prep.write_beton", description="Write an FFCV .beton file.")
    sources = parser.add_subparsers(dest="kind", required=True, metavar="SOURCE")

    def source(name: str, about: str, mode: str = "jpg") -> argparse.ArgumentParser:
        added = sources.add_parser(name, parents=[common], help=about)
        added.add_argument("--mode", choices=MODES, default=mode, help=f"how pixels are stored ({mode})")
        return added

    folder = source("imagefolder", "a folder that holds one folder for each class")
    folder.add_argument("path", type=Path, metavar="PATH")

    tars = source("ilsvrc", "ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar, read in place")
    tars.add_argument("tar", type=Path, metavar="TAR")
    tars.add_argument("--devkit", type=Path, metavar="FILE", help="ILSVRC2012_devkit_t12.tar.gz; val needs it")
    tars.add_argument("--synsets", type=Path, metavar="FILE", help="LOC_synset_mapping.txt, for the classes' names")

    kaggles = source("kaggle", "Kaggle's imagenet-object-localization-challenge, unpacked")
    kaggles.add_argument("root", type=Path, metavar="PATH", help="the folder that holds LOC_synset_mapping.txt")
    kaggles.add_argument("--split", choices=("train", "val"), required=True)

    fashion = source("fashion-mnist", "70,000 gray 28x28 images of clothes", mode="raw")
    fashion.add_argument("--split", choices=("train", "val"), required=True, help="60,000 or 10,000 images")
    fashion.add_argument("--root", type=Path, default=Path("data"), help="where to download, if need be (data)")
    return parser
