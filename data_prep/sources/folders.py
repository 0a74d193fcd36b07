"""Folders of images: one subfolder per class."""

from pathlib import Path

import numpy as np

from data_prep.sources.source import InputError, Source


def image_folder(path: Path) -> Source:
    """A folder with one subfolder per class, as torchvision's ImageFolder reads it: classes are the sorted names.

    Raises InputError if the folder is missing, has no subfolders, or one of them has no images.
    """
    from torchvision.datasets import ImageFolder

    try:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give the folder that has one subfolder per class")
        folder = ImageFolder(str(path))
    except OSError as error:  # torchvision raises FileNotFoundError for a class without images
        raise InputError(f"{path}: {error}; put at least one image into the subfolder of each class") from error
    images, labels = zip(*folder.samples, strict=True)
    return Source(tuple(folder.classes), images, np.array(labels, np.int64))
