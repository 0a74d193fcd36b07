"""Folders of images: one subfolder for each class."""

from pathlib import Path

import numpy as np

from data_prep.sources.source import InputError, Source


def image_folder(path: Path) -> Source:
    """One folder for each class, as torchvision's ImageFolder reads it: classes are the sorted names of the folders.

    Raises InputError if the folder, its classes or a class's images are missing.
    """
    from torchvision.datasets import ImageFolder

    try:
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give the folder that holds one folder for each class")
        folder = ImageFolder(str(path))
    except OSError as error:  # FileNotFoundError too: torchvision's word for a class without images
        raise InputError(f"{path}: {error}; each class needs a folder with at least one image") from error
    images, labels = zip(*folder.samples, strict=True)
    return Source(tuple(folder.classes), images, np.array(labels, np.int64))
