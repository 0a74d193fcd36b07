"""Which files and folders belong to a data set of images, and which of those found beside them do not."""

import warnings
from functools import cache
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

# Why something is left out at listing; the keys of `Source.ignored`.
HIDDEN = "hidden or system files and folders"
NOT_IMAGES = "files that are not images"
CAMERA_RAW = "raw files of cameras, which must be converted first"
NOT_REGULAR = "pipes, sockets and devices"
NO_CLASS = "files that are not in the folder of a class"
READ_ALREADY = "links to folders that are read already"

# What file managers, file servers and operating systems put into folders, in lower case.
_SYSTEM_NAMES = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "icon\r", "@eadir", "#recycle", "@recycle", "lost+found", "__pycache__"),
}
_IMAGE_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "bmp", "webp", "tif", "tiff", "ppm", "pgm", "pbm"),
    *("pnm", "avif", "heic", "heif", "jp2", "j2k", "jpx", "jpf", "jxl"),
}
# Pillow takes these for TIFFs, and would decode a small preview.
_RAW_SUFFIXES = {"3fr", "arw", "cr2", "dng", "iiq", "nef", "nrw", "orf", "pef", "raf", "rw2", "sr2", "srf"}
_WEAK_MAGIC = {"DIB"}  # Pillow knows these by a few bytes that files of other kinds begin with too


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder says that it is hidden, or made by the system."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_hidden_path(path: str) -> bool:
    """Whether a file in an archive, or one of its folders, is hidden."""
    if "/" not in path:  # as 1.3 million names in ImageNet's tars
        return is_hidden(path)
    return any(is_hidden(part) for part in path.split("/") if part not in (".", ".."))


def has_image_suffix(name: str) -> bool:
    """Whether the name ends as those of images usually do.  Such a file need not be opened to take it for an image."""
    return name.rpartition(".")[2].lower() in _IMAGE_SUFFIXES


def is_camera_raw(name: str) -> bool:
    """Whether the name ends as those of a camera's raw files do."""
    return name.rpartition(".")[2].lower() in _RAW_SUFFIXES


def is_image(file: BinaryIO, name: str) -> bool:
    """Whether Pillow recognizes the content of a file as an image that it can decode.  Raises OSError of the disk."""
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    formats = [*_formats_with_magic()]
    if Image.EXTENSION.get(suffix) in Image.OPEN:
        formats.append(Image.EXTENSION[suffix])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=formats) as image:
                # Pillow recognizes videos and scientific data, but does not decode them.
                return image.format != "MPEG" and not isinstance(image, ImageFile.StubImageFile)
        except UnidentifiedImageError:
            return False
        except Image.DecompressionBombError:
            return True
        except OSError as error:
            if error.errno is not None:
                raise
            return False
        except MemoryError:
            raise
        except Exception:  # Pillow's plugins raise many types for files that only begin as an image does
            return False


@cache
def _formats_with_magic() -> tuple[str, ...]:
    """The formats that files of any name are compared with; the others take almost any file for theirs."""
    Image.init()
    return tuple(name for name, (_, accept) in Image.OPEN.items() if accept and name not in _WEAK_MAGIC)
