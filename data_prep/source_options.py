"""The sources of `write_beton` and their options.

To add one, write a function that adds its options to a parser and returns how to open it, and list it in `SOURCES`.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from data_prep.sources import oxford_pets
from data_prep.sources.cifar import LAYOUTS, cifar
from data_prep.sources.fashion_mnist import fashion_mnist
from data_prep.sources.folders import held_out, image_folder
from data_prep.sources.food101 import food101
from data_prep.sources.imagenet import ilsvrc, kaggle
from data_prep.sources.parquet import parquet
from data_prep.sources.source import Source
from data_prep.sources.webdataset import webdataset
from vit.config.paths import user_path

# From the arguments: the source's name in the manifest, and a function that opens it.
Opener: TypeAlias = Callable[[Namespace], tuple[str, Callable[[], Source]]]


class SourceOptions(NamedTuple):
    """A source on the command line."""

    name: str
    about: str
    add_options: Callable[[ArgumentParser], Opener]
    mode: str = "jpg"  # default of --mode
    shuffle: bool = True  # default of --shuffle
    may_download: bool = False  # if the files of --root are missing


def _image_folder(options: ArgumentParser) -> Opener:
    options.add_argument(
        "path", type=user_path, metavar="PATH", help="the folder; classes are the sorted subfolder names"
    )
    options.add_argument(
        "--split",
        choices=("train", "val"),
        help="only the images for training, or only those that are held out for validation (default: all)",
    )
    options.add_argument(
        "--held-out",
        type=float,
        metavar="PERCENT",
        help="with --split: how many images of each class are held out, chosen by their names (default: 20)",
    )

    def read(args: Namespace) -> tuple[str, Callable[[], Source]]:
        name = f"imagefolder {os.path.abspath(args.path)}"
        if args.split is None:
            if args.held_out is not None:
                options.error("--held-out requires --split: write one file with --split train, one with --split val")
            return name, partial(image_folder, args.path)
        percent = 20.0 if args.held_out is None else args.held_out
        if not 0 < percent < 100:
            options.error(f"--held-out must be more than 0 and less than 100 percent, not {percent:g}")
        return f"{name}, {args.split}, {percent:g} % held out", lambda: held_out(
            image_folder(args.path), args.path, args.split, percent
        )

    return read


def _ilsvrc(options: ArgumentParser) -> Opener:
    options.add_argument(
        "tar", type=user_path, metavar="TAR", help="ILSVRC2012_img_train.tar or ILSVRC2012_img_val.tar"
    )
    options.add_argument(
        "--devkit",
        type=user_path,
        metavar="FILE",
        help="ILSVRC2012_devkit_t12.tar.gz, which has the class names and the labels of the validation images; "
        "required for ILSVRC2012_img_val.tar",
    )
    options.add_argument(
        "--synsets",
        type=user_path,
        metavar="FILE",
        help="Kaggle's LOC_synset_mapping.txt, which has the class names too",
    )
    return lambda args: (f"ilsvrc {os.path.abspath(args.tar)}", partial(ilsvrc, args.tar, args.devkit, args.synsets))


def _kaggle(options: ArgumentParser) -> Opener:
    options.add_argument("root", type=user_path, metavar="PATH", help="the folder with LOC_synset_mapping.txt")
    _add_split(options, "the images to write")
    return lambda args: (f"kaggle {os.path.abspath(args.root)} {args.split}", partial(kaggle, args.root, args.split))


def _fashion_mnist(options: ArgumentParser) -> Opener:
    _add_split(options, "60,000 training images or 10,000 test images")
    options.add_argument(
        "--root",
        type=user_path,
        default=Path("data"),
        metavar="PATH",
        help="download to this folder if Debian's package dataset-fashion-mnist is not installed (default: data)",
    )
    return lambda args: (f"fashion-mnist {args.split}", partial(fashion_mnist, args.split, args.root))


def _oxford_pets(options: ArgumentParser) -> Opener:
    _add_split(options, "the 3,680 pictures of trainval.txt or the 3,669 of test.txt")
    _add_root(options, ", ".join(archive.name for archive in oxford_pets.ARCHIVES), f"the folder {oxford_pets.FOLDER}")
    _add_target(options, oxford_pets.TARGETS, "37 breeds, or cats and dogs")
    return lambda args: (
        f"oxford-pets {args.split}, {args.target}",
        partial(oxford_pets.oxford_pets, args.split, args.root, args.target),
    )


def _food101(options: ArgumentParser) -> Opener:
    _add_split(options, "75,750 training pictures or 25,250 test pictures")
    _add_root(options, "food-101.tar.gz", "the folder food-101")
    return lambda args: (f"food101 {args.split}", partial(food101, args.split, args.root))


def _cifar(name: str, options: ArgumentParser) -> Opener:
    layout = LAYOUTS[name]
    _add_split(options, "50,000 training images or 10,000 test images")
    _add_root(options, layout.archive.name, f"the folder {layout.archive.top}")
    if len(layout.keys) > 1:
        _add_target(options, tuple(layout.keys), "100 classes, or 20 superclasses")
    else:
        options.set_defaults(target=next(iter(layout.keys)))

    def read(args: Namespace) -> tuple[str, Callable[[], Source]]:
        target = f", {args.target}" if len(layout.keys) > 1 else ""
        return f"{name} {args.split}{target}", partial(cifar, name, args.split, args.root, args.target)

    return read


def _parquet(options: ArgumentParser) -> Opener:
    _add_files(options, ".parquet", "the files of one split: parquet files, folders of them, or quoted patterns")
    options.add_argument("--image-column", metavar="NAME", help="column of the images (default: image or img)")
    options.add_argument(
        "--label-column", metavar="NAME", help="column of the labels (default: label, labels or fine_label)"
    )
    _add_classes(options, "the class names in the files, else the sorted labels")

    def read(args: Namespace) -> tuple[str, Callable[[], Source]]:
        columns = [f"{name} {value}" for name in ("image_column", "label_column") if (value := getattr(args, name))]
        name = ", ".join([f"parquet {_shorten(args.files)}", *columns, *_classes_entry(args)])
        return name, partial(parquet, args.files, args.image_column, args.label_column, args.classes)

    return read


def _webdataset(options: ArgumentParser) -> Opener:
    _add_files(
        options, ".tar", "the shards of one split: tar files, folders of them, or quoted patterns as a-{000..146}.tar"
    )
    options.add_argument(
        "--label-key",
        metavar="NAME",
        help="entry of KEY.json that is the label (default: KEY.cls, else the entry label of KEY.json)",
    )
    _add_classes(options, "the labels")

    def read(args: Namespace) -> tuple[str, Callable[[], Source]]:
        key = [f"label_key {args.label_key}"] if args.label_key else []
        name = ", ".join([f"webdataset {_shorten(args.files)}", *key, *_classes_entry(args)])
        return name, partial(webdataset, args.files, args.label_key, args.classes)

    return read


SOURCES = (
    SourceOptions("imagefolder", "a folder with one subfolder per class", _image_folder),
    SourceOptions("ilsvrc", "ImageNet's own tar files, read in place without unpacking", _ilsvrc),
    SourceOptions("kaggle", "the unpacked files of Kaggle's imagenet-object-localization-challenge", _kaggle),
    SourceOptions(
        "fashion-mnist", "Fashion-MNIST: gray images of clothes, 28x28 pixels", _fashion_mnist, "raw", may_download=True
    ),
    SourceOptions("oxford-pets", "the Oxford-IIIT Pet data set: cats and dogs", _oxford_pets, may_download=True),
    SourceOptions("food101", "Food-101: pictures of dishes", _food101, may_download=True),
    SourceOptions("cifar10", "CIFAR-10: 32x32 pixels", partial(_cifar, "cifar10"), "raw", may_download=True),
    SourceOptions("cifar100", "CIFAR-100: 32x32 pixels", partial(_cifar, "cifar100"), "raw", may_download=True),
    SourceOptions("parquet", "parquet files of images, as on the Hugging Face Hub", _parquet, shuffle=False),
    SourceOptions("webdataset", "WebDataset's shards, tar files of .jpg and .cls or .json", _webdataset),
)


def _add_split(options: ArgumentParser, about: str) -> None:
    options.add_argument("--split", choices=("train", "val"), required=True, help=about)


def _add_root(options: ArgumentParser, archives: str, folder: str) -> None:
    options.add_argument(
        "--root",
        type=user_path,
        default=Path("data"),
        metavar="PATH",
        help=f"the folder that contains {folder}, or {archives}; downloaded if they are missing (default: data)",
    )


def _add_target(options: ArgumentParser, targets: Sequence[str], about: str) -> None:
    options.add_argument(
        "--target", choices=targets, default=targets[0], help=f"what to classify: {about} (default: {targets[0]})"
    )


def _add_files(options: ArgumentParser, suffix: str, about: str) -> None:
    options.set_defaults(suffix=suffix)
    options.add_argument("files", type=lambda text: str(user_path(text)), nargs="+", metavar="FILE", help=about)


def _add_classes(options: ArgumentParser, default: str) -> None:
    options.add_argument(
        "--classes",
        type=user_path,
        metavar="FILE",
        help="names of the classes in the order of the labels: a text file with one per line, a JSON list, or the "
        f"manifest of another data set (default: {default})",
    )


def _classes_entry(args: Namespace) -> list[str]:
    return [f"classes {os.path.abspath(args.classes)}"] if args.classes else []


def _shorten(files: Sequence[str]) -> str:
    """Absolute paths, at most three."""
    more = [f"and {len(files) - 3} more"] if len(files) > 3 else []
    return " ".join([*(os.path.abspath(file) for file in files[:3]), *more])
