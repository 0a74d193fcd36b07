"""Shared libraries that this machine's Python and its packages need, and that a chroot does not have."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.helpers.paths import ROOT

FOLDER = "usr/local/lib/of-host"  # in the chroot
OWN = ("torch", "nvidia", "triton", "nvidia_dali")  # packages that bring all their libraries


def copy_missing_libraries(root: Path) -> None:
    """Copies them into a folder of the chroot that the dynamic linker searches last."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (root / "etc/ld.so.conf.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/ld.so.conf.d/zz-of-host.conf").write_text(f"/{FOLDER}\n")
    shown = subprocess.run(["chroot", str(root), "ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    present = set(re.findall(r"^\s+(\S+) \(", shown, re.M))
    copied = [shutil.copy(path, folder / name) for name, path in _needed().items() if name not in present]
    if copied:
        subprocess.run(["chroot", str(root), "ldconfig"], check=True)


def _needed() -> dict[str, str]:
    """Libraries of the system that Python and its extension modules are linked to: path by name."""
    modules = [Path(sys.executable).resolve(), *Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")]
    packages = Path(sysconfig.get_path("purelib"))
    modules += [file for file in packages.rglob("*.so") if file.relative_to(packages).parts[0] not in OWN]
    modules += [file for room in ("vit", "data_prep") for file in (ROOT / room).rglob("*.so")]
    done = subprocess.run(["ldd", *map(str, modules)], capture_output=True, text=True, check=False)
    found = dict(re.findall(r"^\s+(\S+) => (/(?:usr/)?lib\S*) ", done.stdout, re.M))
    return {name: path for name, path in found.items() if Path(path).exists()}
