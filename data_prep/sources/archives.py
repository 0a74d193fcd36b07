"""Archives as downloaded (.tar.gz): finds them, downloads and unpacks them.

A .tar.gz can only be read from its start, so images in one cannot be read in place: it has to be unpacked.
"""

import fcntl
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import ENOENT
from pathlib import Path
from typing import NamedTuple

from data_prep.sources.download import DownloadError, download, unfinished_file
from data_prep.sources.source import InputError


class Archive(NamedTuple):
    """An archive that is published on the web."""

    name: str  # of the file
    url: str
    md5: str
    top: str  # the folder that it contains


def find_archive(root: Path, archive: Archive, fetch: bool, others: Sequence[Archive] = ()) -> Path:
    """The path of `archive` in `root`; downloaded there if it is missing.

    `others` are missing as well: an error names them too.  Raises InputError if the archive is missing and cannot be
    downloaded, or may not be, without `fetch`.
    """
    path = root / archive.name
    if path.is_file():
        return path
    if not fetch:
        raise InputError(f"{path}: no such file") from FileNotFoundError(ENOENT, os.strerror(ENOENT), path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):  # another command, for the other split, may be downloading it
            if not path.is_file():
                download(archive.url, path, archive.md5)
    except DownloadError as error:
        raise InputError(_failed_download(root, [archive, *others], str(error))) from error
    except OSError as error:
        why = error.strerror or error
        advice = f"make {root} writable and free disk space, then run the same command again"
        raise InputError(f"{path}: is missing, and cannot be written ({why}); {advice}") from error
    return path


def _failed_download(root: Path, archives: Sequence[Archive], why: str) -> str:
    """Why archives are missing, and what to do: how to go on with a network, and without one."""
    names = " and ".join(archive.name for archive in archives)
    are, them = ("are", "them") if len(archives) > 1 else ("is", "it")
    addresses = " and ".join(archive.url for archive in archives)
    kept = unfinished_file(root / archives[0].name)
    continues = f", which continues after the {kept.stat().st_size / 1e6:,.0f} MB in {kept}" if kept.exists() else ""
    return (
        f"{root}: {names} {are} missing, and the download failed ({why}); run the same command again{continues}; "
        f"without a network, download {addresses} elsewhere, copy {them} into {root}, and run the same command again; "
        f"if you have {them} already, give the --root that contains {them}"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file or folder, where the file system has locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def find_folders(root: Path, folder: str, archives: Sequence[Archive], fetch: bool) -> Path:
    """The folder that contains the unpacked `archives`: `root`/`folder`, or `root` itself if it has that name.

    With `fetch`, what is missing is unpacked into `root`/`folder` from the archive, which is in `root` or in
    `root`/`folder`, or is downloaded.  Raises InputError if an archive is damaged or cannot be downloaded.
    """
    root = root.parent if root.name == folder else root
    base = root / folder
    for number, archive in enumerate(archives):
        if (base / archive.top).is_dir():
            continue
        if not fetch:
            missing = FileNotFoundError(ENOENT, os.strerror(ENOENT), base / archive.top)
            raise InputError(f"{base / archive.top}: no such folder") from missing
        others = [each for each in archives[number + 1 :] if not _is_here(root, base, each)]
        inside = base / archive.name
        packed = inside if inside.is_file() else find_archive(root, archive, fetch, others)
        _unpack(packed, archive.top, base)
    return base


def _is_here(root: Path, base: Path, archive: Archive) -> bool:
    """Whether an archive is here, or what it contains."""
    return (base / archive.top).is_dir() or (base / archive.name).is_file() or (root / archive.name).is_file()


def _unpack(path: Path, top: str, base: Path) -> None:
    """Unpacks the folder `top` of an archive into `base`, where it appears when it is complete."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _locked(path), path.open("rb") as file:  # another command, for the other split, may be unpacking it
            if (base / top).is_dir():
                return
            temporary = base / f".{path.name}.unpacking"
            shutil.rmtree(temporary, ignore_errors=True)  # of a command that was killed
            try:
                with tarfile.open(fileobj=file, mode="r:gz") as archive:
                    archive.extractall(temporary, filter="data")
                if not (temporary / top).is_dir():
                    raise InputError(f"{path}: contains no folder {top}; download it again")
                os.rename(temporary / top, base / top)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path}: is damaged ({error}); download it again") from None
    except OSError as error:
        what = "is damaged" if error.errno is None else "cannot be unpacked"  # gzip's own errors have no errno
        advice = "download it again" if error.errno is None else f"make {base} writable and free disk space"
        raise InputError(f"{path}: {what} ({error.strerror or error}); {advice}") from None


def read_archive(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The contents of the files `names` of a .tar.gz, without unpacking it.

    Raises InputError if it is damaged or a file is missing.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # to the end, where the checksum of the archive is
                file = archive.extractfile(member) if member.name in names and member.isfile() else None
                if file:
                    found[member.name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); download it again") from None
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path}: contains no {missing[0]}; download it again")
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.  Raises InputError if it cannot be read."""
    try:
        return [line for line in map(str.strip, path.read_text(encoding="utf-8").splitlines()) if line]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read ({why}); unpack the archive again") from None


def require_images(paths: Sequence[Path]) -> list[str]:
    """The paths as text.  Raises InputError, which names the first one, if some of these files do not exist.

    Each folder is listed once.  A missing image would otherwise be noticed only when it is its turn.
    """
    try:
        existing = {folder: set(os.listdir(folder)) for folder in {path.parent for path in paths} if folder.is_dir()}
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from None
    missing = [path for path in paths if path.name not in existing.get(path.parent, ())]
    if missing:
        raise InputError(
            f"{missing[0]}: is missing, and {len(missing) - 1:,} other images of the list too; "
            "delete the unpacked folder, so that the archive is unpacked again"
        )
    return [str(path) for path in paths]
