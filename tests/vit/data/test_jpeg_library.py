"""The libjpeg that the C++ decoder is built with, and the one that it finds at run time."""

import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.environment import CHECKOUT_VARIABLE
from tests.helpers.paths import CHECKOUT, ROOT
from tests.helpers.pixel_digests import write_cases
from vit.data.jpeg_library import jpeg_library
from vit.data.native import native_jpeg_library, native_library

pytestmark = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")

WHICH = "from vit.data.native import native_jpeg_library; print(native_jpeg_library())"
# A library that is loaded before libjpeg: the first value of each row differs by one level.  (Only that one, because
# libjpeg itself calls this function to skip rows, and then has memory for one byte.)
OTHER_PIXELS = """
#include <dlfcn.h>
#include <stdio.h>
#include <jpeglib.h>
JDIMENSION jpeg_read_scanlines(j_decompress_ptr info, JSAMPARRAY rows, JDIMENSION count) {
    JDIMENSION (*next)(j_decompress_ptr, JSAMPARRAY, JDIMENSION) = dlsym(RTLD_NEXT, "jpeg_read_scanlines");
    JDIMENSION done = next(info, rows, count);
    rows[0][0] ^= 1;
    return done;
}
"""


def pillows_libjpeg() -> Path:
    """The libjpeg-turbo in Pillow's wheel, of the same interface as this system's."""
    package = Path(str(importlib.metadata.distribution("pillow").locate_file("pillow.libs")))
    found = [*package.glob("libjpeg-*.so.62.*")]
    ours = native_jpeg_library()
    if not found or ours is None or not ours.path.endswith(".so.62"):
        pytest.skip("Pillow has no libjpeg that can take the place of this system's")
    return found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with Pillow's libjpeg under the system's name: with LD_LIBRARY_PATH, the decoder finds it first."""
    shutil.copy(pillows_libjpeg(), tmp_path / "libjpeg.so.62")
    return tmp_path


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python in the checkout with these variables."""
    environment = os.environ | {CHECKOUT_VARIABLE: str(CHECKOUT), "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def refused(**variables: str) -> str:
    """The message of a process that must not use its libjpeg."""
    done = run("-c", WHICH, **variables)
    assert done.returncode == 1 and not done.stdout
    line = done.stderr.splitlines()[-1]
    prefix = "vit.config.user_error.UserError: the C++ decoder (vit.data._native) cannot be loaded: "
    assert line.startswith(prefix), done.stderr
    assert "make libjpeg-turbo available here" in line
    return line.removeprefix(prefix)


def test_another_libjpeg_turbo_decodes_the_same_pixels(folder: Path) -> None:
    """Pillow's newer one in place of the one with which the decoder was built: every result has the same digest."""
    cases, command = folder / "cases.npz", ("-m", "tests.helpers.pixel_digests")
    write_cases(cases, 15)
    ours, other = (json.loads(run(*command, str(cases), **v).stdout) for v in ({}, {"LD_LIBRARY_PATH": str(folder)}))
    built = native_jpeg_library()
    assert built and ours["libjpeg"] == str(built)
    assert re.fullmatch(rf"libjpeg-turbo \d\S+ \({folder}/libjpeg.so.62\)", other["libjpeg"])
    assert other["digests"] == ours["digests"] and "JPEG, bicubic" in ours["digests"]


@pytest.mark.campaign
def test_the_tests_of_the_decoder_pass_with_another_libjpeg_turbo(folder: Path) -> None:
    """As above, compared with Pillow and torchvision."""
    options = ("-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not ffcv and not avx2")
    tests = ("tests/vit/data/test_decode.py", "tests/vit/data/test_jpeg_damage.py")
    done = run("-m", "pytest", *options, *tests, LD_LIBRARY_PATH=str(folder))
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 50


def test_mozjpeg_is_refused_at_run_time(folder: Path) -> None:
    """By the name that its file has; here libjpeg-turbo's file with that name."""
    file = folder / "libjpeg.so.62"
    content = file.read_bytes()
    assert content.count(b"libjpeg-turbo version ") == 1
    file.write_bytes(content.replace(b"libjpeg-turbo version ", b"mozjpeg version 5.0.0 "))
    assert refused(LD_LIBRARY_PATH=str(folder)).startswith(f"mozjpeg 5.0.0 ({file}) is not libjpeg-turbo; ")


def test_a_libjpeg_without_a_name_is_refused_at_run_time(folder: Path) -> None:
    """IJG's has none."""
    file = folder / "libjpeg.so.62"
    file.write_bytes(file.read_bytes().replace(b"libjpeg-turbo version ", b"libjpeg       version "))
    assert refused(LD_LIBRARY_PATH=str(folder)).startswith(f"libjpeg ({file}) is not libjpeg-turbo; ")


@needs_compiler
def test_a_libjpeg_with_other_pixels_is_refused_at_run_time(tmp_path: Path) -> None:
    """Whatever it calls itself: an image is decoded and compared when the decoder is loaded."""
    built, ours = tmp_path / "other.so", native_jpeg_library()
    assert ours
    command = ["gcc", "-xc", "-", "-D_GNU_SOURCE", "-fPIC", "-shared", "-o", str(built)]
    subprocess.run(command, input=OTHER_PIXELS, text=True, check=True)
    message = refused(LD_PRELOAD=f"{built} {ours.path}")
    assert re.match(r"libjpeg-turbo \S+ \(\S+\) does not give the pixels of libjpeg-turbo 2.1.5 to 3.2.0", message)


@needs_compiler
def test_a_libjpeg_of_another_interface_is_refused_at_run_time(tmp_path: Path) -> None:
    """Its structures may have another size.  Here the decoder is built as with libjpeg 8's interface."""
    (tmp_path / "jpeglib.h").write_text(
        "#include_next <jpeglib.h>\n#undef JPEG_LIB_VERSION\n#define JPEG_LIB_VERSION 80\n"
    )
    built = tmp_path / "other.so"
    sources = [str(ROOT / "vit" / "data" / f"{name}.cpp") for name in ("native", "whole_jpeg", "jpeg_library")]
    flags = ["-std=c++17", "-fPIC", "-shared", f"-I{tmp_path}"]
    subprocess.run(["g++", *flags, *sources, "-o", str(built), "-ljpeg"], check=True)
    with pytest.raises(ValueError, match=r"^libjpeg-turbo .* does not fit .*, with which it was built: Wrong JPEG"):
        jpeg_library(ctypes.CDLL(str(built)))


def test_a_libjpeg_that_is_missing_is_one_line(tmp_path: Path) -> None:
    """As on a node without it, or with IJG's, which lacks some functions.  Here the file is empty."""
    (tmp_path / "libjpeg.so.62").touch()
    assert re.match(r"\S*libjpeg.so.62: file too short; ", refused(LD_LIBRARY_PATH=str(tmp_path)))


@needs_compiler
@pytest.mark.parametrize(
    ("define", "why"),
    [
        ("#undef LIBJPEG_TURBO_VERSION", "jpeglib.h is not libjpeg-turbo's (IJG's libjpeg?); install libjpeg-turbo's"),
        ("#define JPEG_C_PARAM_SUPPORTED 1", "jpeglib.h is mozjpeg's; install libjpeg-turbo's headers instead"),
    ],
)
def test_other_headers_are_refused_at_build_in_one_line(tmp_path: Path, define: str, why: str) -> None:
    """The macros by which IJG's headers and mozjpeg's differ."""
    (tmp_path / "jpeglib.h").write_text(f"#include_next <jpeglib.h>\n{define}\n")
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{tmp_path}", str(ROOT / "vit" / "data" / "jpeg_library.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f'error: #error "vit.data._native is not built: {why}' in done.stderr
