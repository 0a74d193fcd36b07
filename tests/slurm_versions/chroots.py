"""Chroots with the Slurm of other releases of Debian and Ubuntu, and this machine's Python in them.

A chroot is built once, in minutes, and kept in a folder.  A command in it has a mount namespace of its own, in which
/proc, /dev, /sys, the project, its Python and its virtual environment are the host's; all mounts vanish with it.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.slurm_versions.host_libraries import copy_missing_libraries

PACKAGES = (
    *("slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "mariadb-server-core", "mariadb-client-core"),
    *("git", "make", "procps", "iproute2", "ca-certificates"),
)
OF_HOST = (Path("/etc/hosts"), Path("/etc/resolv.conf"), Path("/usr/share/datasets"))  # datasets: Fashion-MNIST
NEEDED = ("debootstrap", "chroot", "unshare")
KEYRING = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
READY = ".ready"  # in a chroot that is complete: the packages that it was built with
NO_DAEMONS = "#!/bin/sh\nexit 101\n"  # policy-rc.d: packages must not start their services


@dataclass(frozen=True)
class Release:
    """A release of Debian or Ubuntu that ships a version of Slurm."""

    slurm: str
    suite: str
    ubuntu: bool = False

    @property
    def name(self) -> str:
        """As in `Ubuntu noble`."""
        return f"{'Ubuntu' if self.ubuntu else 'Debian'} {self.suite}"


RELEASES = (
    Release("22.05", "bookworm"),
    Release("23.11", "noble", ubuntu=True),
    Release("24.11", "trixie"),
    Release("25.11", "resolute", ubuntu=True),
    Release("26.05", "sid"),
)


class ChrootError(RuntimeError):
    """A chroot could not be built, or this machine's Python does not run in it."""


def why_not() -> str:
    """Why no chroot can be built on this machine; "" if one can."""
    absent = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if absent:
        return f"{', '.join(absent)} not found (apt-get install debootstrap debian-archive-keyring)"
    return "" if os.geteuid() == 0 else "building chroots needs root"


def build(release: Release, folder: Path) -> Path:
    """The chroot of a release, built if it is not there yet.  Raises ChrootError."""
    root = folder / f"slurm-{release.slurm}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"slurm-{release.slurm}.lock"):
        if not _is_ready(root):
            shutil.rmtree(root, ignore_errors=True)
            log = folder / f"slurm-{release.slurm}.log"
            print(f"building a chroot of {release.name} with Slurm {release.slurm}: {root}", flush=True)
            with log.open("w") as out:
                _bootstrap(release, root, _ubuntu_keyring(folder) if release.ubuntu else None, out.fileno())
        # Every time: another Python or virtual environment may need other libraries.
        copy_missing_libraries(root)
    done = subprocess.run(
        [*inside(root, folder), sys.executable, "-c", "import torch, ffcv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without an error"])[-1]
        raise ChrootError(f"this machine's Python does not run in a chroot of {release.name}: {reason}")
    return root


def inside(root: Path, *more: Path) -> list[str]:
    """The first words of a command that runs in a chroot, in the folder of the project; it also sees `more`."""
    python = Path(os.path.realpath(sys.executable))
    shared = {ROOT, Path(sys.prefix), Path(sys.base_prefix), *more, *(path for path in OF_HOST if path.exists())}
    if Path(sys.base_prefix) == Path("/usr"):  # a Python of the system; its other files are those of the chroot
        shared -= {Path("/usr")}
        shared |= {python, Path(os.__file__).parent}
    # A test may hide a folder in a mount namespace of its own, for which unshare wants / to be a mount point.
    lines = ["set -e", f"mount --bind {root} {root}", f"cd {root}"]
    for name in ("proc", "sys", "dev"):
        lines.append(f"mount --rbind /{name} {root}/{name}")
    for path in sorted(shared):
        make = f"mkdir -p {root}{path}" if path.is_dir() else f"mkdir -p {root}{path.parent}; touch {root}{path}"
        lines.append(f"{make}; mount --bind {path} {root}{path}")
    lines.append(f'exec chroot {root} sh -c \'cd "$0" && exec "$@"\' {ROOT} "$@"')
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh"]


def _bootstrap(release: Release, root: Path, keyring: Path | None, log: int) -> None:
    options = ["--variant=minbase", *(["--components=main,universe", f"--keyring={keyring}"] if keyring else [])]
    # An older debootstrap has no script for a newer suite; the scripts of all suites are the same.
    script = ["", "gutsy" if release.ubuntu else "sid"]
    _call(["debootstrap", *options, release.suite, str(root), *script], log, release)
    (root / "usr/sbin/policy-rc.d").write_text(NO_DAEMONS)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    # The list of packages of Debian's unstable release expires within days, and a mirror may be older.
    stale = ["-o", "Acquire::Check-Valid-Until=false"]
    for words in ([*stale, "update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *PACKAGES], ["clean"]):
        _call(["chroot", str(root), "apt-get", *words], log, release, environment)
    (root / READY).write_text(" ".join(PACKAGES))


def _is_ready(root: Path) -> bool:
    return (root / READY).exists() and (root / READY).read_text() == " ".join(PACKAGES)


def _ubuntu_keyring(folder: Path) -> Path:
    """The keys of Ubuntu; on a Debian without them, from the package of a newer Debian."""
    if KEYRING.exists():
        return KEYRING
    root = build(next(release for release in RELEASES if release.suite == "trixie"), folder)
    keyring = root / KEYRING.relative_to("/")
    if not keyring.exists():
        done = subprocess.run(
            ["chroot", str(root), "sh", "-c", "apt-get update -qq; apt-get install -qq -y ubuntu-archive-keyring"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ChrootError(f"Debian's package ubuntu-archive-keyring cannot be installed: {done.stderr.strip()}")
    return keyring


def _call(
    command: Sequence[str], log: int, release: Release, environment: "os._Environ[str] | dict[str, str] | None" = None
) -> None:
    if subprocess.call(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment):
        name = os.readlink(f"/proc/self/fd/{log}")
        lines = [line for line in Path(name).read_text(errors="replace").splitlines() if line.strip()]
        raise ChrootError(f"no chroot of {release.name}: {lines[-1] if lines else command[0]} (see {name})")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Two commands build the same chroot one after the other."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
