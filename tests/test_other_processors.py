"""The C++ parts give the same bits on ARM, and on x86 without AVX2, as on this machine.

    python -m pytest -m "campaign or not campaign" tests/test_other_processors.py

Needs Debian's or Ubuntu's qemu-user-static and g++-aarch64-linux-gnu, and the first time a network.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.emulation import COMPILER, ArmSystem, CannotEmulateError, copy_project, old_x86_command
from tests.helpers.paths import ROOT
from tests.helpers.pixel_digests import write_cases
from vit.data.native import native_library

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(platform.machine() != "x86_64" or native_library() is None, reason="needs x86, and a build"),
]
DIGESTS = ("-m", "tests.helpers.pixel_digests")
TESTS = ("tests/vit/data/test_decode.py", "tests/vit/data/test_crops.py", "tests/vit/augment/test_pixel_ops.py")


def output(command: list[str], project: Path, **variables: str) -> str:
    """The standard output of a command in a copy of the project."""
    environment = os.environ | {"PYTHONPATH": str(project)} | variables
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and crops."""
    path = tmp_path_factory.mktemp("cases") / "cases.npz"
    write_cases(path, 20)
    return path


@pytest.fixture(scope="module")
def here(cases: Path) -> dict[str, str]:
    """The digests of this machine, which has AVX2 and FMA."""
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this machine has no AVX2 to compare with")
    found: dict[str, str] = json.loads(output([sys.executable, *DIGESTS, str(cases)], ROOT))["digests"]
    assert len(found) == 18
    return found


def arm_system(torch: bool = False) -> ArmSystem:
    """The emulated system; skips the test where there is none."""
    try:
        return ArmSystem(torch)
    except CannotEmulateError as error:
        pytest.skip(str(error))


def test_arm_has_the_same_bits(cases: Path, here: dict[str, str], tmp_path: Path) -> None:
    """Built without the AVX2 parts, with the flags of setup.py: no product and sum is fused but where we ask for it."""
    system, project = arm_system(), copy_project(tmp_path)
    system.build(project)
    found = json.loads(output(system.command(*DIGESTS, cases), project))
    assert found["libjpeg"].startswith("libjpeg-turbo ") and "aarch64-linux-gnu" in found["libjpeg"]
    assert found["digests"] == here


def test_x86_without_avx2_has_the_same_bits(cases: Path, here: dict[str, str]) -> None:
    """The parts that the processor selects when they are called; those of libjpeg-turbo, too."""
    try:
        command = old_x86_command(*DIGESTS, cases)
    except CannotEmulateError as error:
        pytest.skip(str(error))
    assert json.loads(output(command, ROOT))["digests"] == here


def test_the_tests_of_decoder_and_pixels_pass_on_arm(tmp_path: Path) -> None:
    """Compared there with Pillow's, torchvision's and torch's pixels."""
    system, project = arm_system(torch=True), copy_project(tmp_path / "project")
    system.build(project)
    compiler = tmp_path / "bin" / "g++"  # the tests compile, too: for ARM
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which(COMPILER)} "$@"\n')
    compiler.chmod(0o755)
    # What starts other processes of Python, as to write data sets, cannot be emulated so.
    others = ("ffcv", "avx2_decodes", "auto_selects", "uncropped_raw_images", "crop_without_resizing")
    chosen = " and ".join(f"not {name}" for name in others)
    options = ("-p", "no:cacheprovider", "--timeout", "3000", "-k", chosen)
    path = f"{compiler.parent}:/bin"
    text = output(system.command("-m", "pytest", *options, *TESTS), project, PATH=path)
    assert int(re.findall(r"(\d+) passed", text)[0]) > 90
