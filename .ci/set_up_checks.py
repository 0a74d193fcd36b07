"""What `make setup` checks before it installs anything: the disk, and whether an index has CPU-only builds."""

import ctypes
import os
import re
import shutil
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
DOWNLOAD, INSTALLED = 2.8e9, 6.8e9  # bytes, measured: what pip downloads, and what .venv then has
CPU_DOWNLOAD, CPU_INSTALLED = 1e9, 2.1e9  # at most: what is not CUDA's of these
NO_NETWORK = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|ReadTimeout|MaxRetryError")
UNREACHABLE = "the package index cannot be reached; check the network and the proxy (https_proxy), then run it again"
PDEATHSIG = 1  # of prctl


class SetupError(Exception):
    """What the user can fix, in one line."""


def check_space(torch):
    """Raises SetupError if a disk has too little space for the environment, or for the files that pip downloads."""
    download, installed = (CPU_DOWNLOAD, CPU_INSTALLED) if torch == "cpu" else (DOWNLOAD, INSTALLED)
    wanted = [(VENV, installed - size(VENV)), (tempfile.gettempdir(), download)]
    # pip's cache is not counted: pip goes on without it if its disk is full.
    needed = {}  # for each disk: one of its folders, and bytes
    for folder, count in wanted:
        disk = os.stat(_existing(folder)).st_dev
        first, total = needed.get(disk, (folder, 0))
        needed[disk] = (first, total + count)
    for folder, count in needed.values():
        free = shutil.disk_usage(_existing(folder)).free
        if free < count:
            raise SetupError(
                f"the disk of {folder} has {free / 1e9:.1f} GB free, but up to {count / 1e9:.1f} GB are needed there; "
                "free some, or use another disk: make .venv a link to a folder there, or set TMPDIR"
            )


def _existing(path):
    """The path, or its closest parent that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def size(folder):
    """Bytes of all files in a folder."""
    files = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_size for file in files)


def check_cpu_builds(python, index, note):
    """Raises SetupError unless an index has CPU-only builds of torch and torchvision, which work only together."""
    note("looking for CPU-only builds")
    with open(os.path.join(ROOT, "constraints.txt")) as file:
        pins = dict(re.findall(r"^(torch|torchvision)===?(\S+)$", file.read(), re.MULTILINE))
    found = {}
    for name in pins:
        command = [python, "-m", "pip", "--disable-pip-version-check", "index", "versions", name, *index_options(index)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if NO_NETWORK.search(done.stderr):
            raise SetupError(UNREACHABLE)
        versions = re.search(r"^Available versions: (.*)$", done.stdout, re.MULTILINE)
        found[name] = versions[1].split(", ") if versions else []
    if all(f"{version}+cpu" in found[name] for name, version in pins.items()):
        return
    others = [f"{name} {version}" for name in found for version in found[name] if version.endswith("+cpu")]
    raise SetupError(
        f"TORCH=cpu needs {' and '.join(f'{name} {version}+cpu' for name, version in pins.items())}, but the package "
        f"index has {'only ' + ', '.join(others[:4]) if others else 'neither'}; name an index that has both, "
        "make setup TORCH=cpu TORCH_INDEX=URL (pytorch.org/get-started shows it for CPU), or use the builds with CUDA, "
        "which run on CPUs, too: make setup TORCH=cuda.  Nothing was installed"
    )


def index_options(index):
    """Options of pip."""
    return ["--extra-index-url", index] if index else []


def end_with_parent(number):
    """Makes the kernel send a signal to this process when its parent ends."""
    ctypes.CDLL(None).prctl(PDEATHSIG, number)
