"""Folders of images: one subfolder per class.  What is not an image of a class is left out, and counted."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.sources.ignored import IgnoredCounter
from data_prep.sources.recognize import (
    CAMERA_RAW,
    HIDDEN,
    NO_CLASS,
    NOT_IMAGES,
    NOT_REGULAR,
    READ_ALREADY,
    has_image_suffix,
    is_camera_raw,
    is_hidden,
    is_image,
)
from data_prep.sources.source import InputError, Source, open_at_once


def image_folder(path: Path) -> Source:
    """A folder with one subfolder per class, in torchvision's order: classes are the sorted names.

    Raises InputError if a folder cannot be read, if there are no subfolders, or if one of them has no images.
    """
    with _errors_named(str(path)):
        is_folder = path.is_dir()
    if not is_folder:
        problem = "is a file" if path.exists() else "no such folder"
        raise InputError(f"{path}: {problem}; give the folder that has one subfolder per class")
    scan = FolderScan(path)
    classes = scan.class_folders()
    if not classes:
        raise InputError(f"{path}: has no subfolders; give the folder that has one subfolder per class")
    images: list[str] = []
    counts = []
    for name in classes:
        found = scan.images(os.path.join(path, name), name)
        images += found
        counts.append(len(found))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        others = f" (and {len(empty) - 1} others)" if len(empty) > 1 else ""
        what = f"class {empty[0]} has no images{others}"
        raise InputError(f"{path}: {what}; put at least one image into the subfolder of each class, or remove it")
    return Source(tuple(classes), images, np.repeat(np.arange(len(classes)), counts), ignored=scan.ignored.result())


def held_out(source: Source, root: Path, split: str, percent: float) -> Source:
    """Splits a folder in two: "val" is this share of the images of each class, at least one, and "train" the others.

    An image is chosen by a digest of its path below `root`, so it stays where it is on every machine.  Raises
    InputError for a class with a single image.
    """
    digests = [hashlib.sha256(os.path.relpath(os.fsencode(str(i)), os.fsencode(root))).digest() for i in source.images]
    chosen = np.zeros(len(digests), bool)
    for label, name in enumerate(source.classes):
        samples = sorted(np.flatnonzero(source.labels == label).tolist(), key=digests.__getitem__)
        if len(samples) == 1:
            what = f"class {name} has a single image, which cannot be in both sets"
            raise InputError(f"{root}: {what}; add images to each class that has only one, or remove it")
        count = min(max(1, round(len(samples) * percent / 100)), len(samples) - 1)
        chosen[samples[:count]] = True
    kept = np.flatnonzero(chosen if split == "val" else ~chosen)
    return replace(source, images=[source.images[i] for i in kept.tolist()], labels=source.labels[kept])


class FolderScan:
    """Lists images below a folder.  Links are followed, and each real folder is read once."""

    def __init__(self, root: Path) -> None:
        self.ignored = IgnoredCounter()
        self._root = str(root)
        self._visited: dict[tuple[int, int] | str, tuple[str, str]] = {}  # folder's identity -> its path and class
        with _errors_named(self._root):
            self._visited[_identity(self._root)] = self._root, ""

    def class_folders(self) -> list[str]:
        """The sorted names of the subfolders.  Files beside them are counted as ignored."""
        names = []
        with _errors_named(self._root), os.scandir(self._root) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    self._ignore(HIDDEN, entry.path)
                elif entry.is_dir():
                    names.append(entry.name)
                else:
                    self._refuse_broken_link(entry)
                    self._ignore(NO_CLASS if entry.is_file() else NOT_REGULAR, entry.path)
        return sorted(names)

    def images(self, folder: str, owner: str = "") -> list[str]:
        """The paths of the images in `folder` and below, in torchvision's order, for the class `owner`.

        Raises InputError if a folder cannot be read, a link is broken, or a folder belongs to another class already.
        """
        found: list[tuple[str, list[str]]] = []
        folders, links = ([], [folder]) if os.path.islink(folder) else ([folder], [])
        while folders or links:
            # Real folders first: an image that a link leads to as well keeps its own path.
            current = folders.pop() if folders else links.pop()
            with _errors_named(current):
                if self._is_read_already(current, owner):
                    self._ignore(READ_ALREADY, current)
                    continue
                names = []
                with os.scandir(current) as entries:
                    for entry in entries:
                        if is_hidden(entry.name):
                            self._ignore(HIDDEN, entry.path)
                        elif has_image_suffix(entry.name) and entry.is_file():  # first, because most are images
                            names.append(entry.name)
                        elif entry.is_dir():
                            (links if entry.is_symlink() else folders).append(entry.path)
                        elif self._is_image_by_content(entry):
                            names.append(entry.name)
            found.append((current, sorted(names)))
        return [
            prefix + name for where, names in sorted(found) for prefix in [os.path.join(where, "")] for name in names
        ]

    def _is_image_by_content(self, entry: os.DirEntry[str]) -> bool:
        if not entry.is_file():
            self._refuse_broken_link(entry)
            self._ignore(NOT_REGULAR, entry.path)
            return False
        if is_camera_raw(entry.name):
            self._ignore(CAMERA_RAW, entry.path)
            return False
        with _errors_named(entry.path), open(entry.path, "rb", opener=open_at_once) as file:
            if is_image(file, entry.name):
                return True
        self._ignore(NOT_IMAGES, entry.path)
        return False

    def _is_read_already(self, folder: str, owner: str) -> bool:
        """Whether the real folder has been read, or contains the link `folder`.  Raises InputError for two classes."""
        identity = _identity(folder)
        first, first_owner = self._visited.get(identity, (folder, owner))
        if first != folder:
            if first_owner and first_owner != owner:
                what = f"is the same folder as {first}, so its images would be in the classes {first_owner} and {owner}"
                raise InputError(f"{folder}: {what}; remove one of the links")
            return True
        if os.path.islink(folder):
            target, here = os.path.realpath(folder), os.path.realpath(os.path.dirname(folder))
            if os.path.commonpath([target, here]) == target:
                return True
        self._visited[identity] = folder, owner
        return False

    def _refuse_broken_link(self, entry: os.DirEntry[str]) -> None:
        """Raises InputError for a link to nothing: it may stand for images on a disk that is not mounted."""
        if entry.is_symlink() and not os.path.exists(entry.path):
            target = os.readlink(entry.path)
            raise InputError(
                f"{entry.path}: is a link to {target}, which does not exist; restore it, or remove the link"
            )

    def _ignore(self, reason: str, path: str) -> None:
        self.ignored.add(reason, path[len(self._root) :].lstrip("/"))


def _identity(folder: str) -> tuple[int, int] | str:
    """What is the same for all paths of a real folder."""
    status = os.stat(folder)
    # Some file systems in user space number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


@contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Turns an OSError of the block into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{error.filename or path}: cannot be read ({why}); make it readable, or remove it") from error
