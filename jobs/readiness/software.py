"""Checks the versions of Python and of the libraries, and the C++ extensions.  Imports none of the large libraries."""

import configparser
import ctypes
import importlib.machinery
import importlib.metadata
import io
import platform
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from jobs.login.run_files import ROOT
from jobs.readiness.finding import Finding, Level
from jobs.readiness.request import Request
from vit.config.own_files import is_checkout
from vit.config.user_error import UserError
from vit.data import native
from vit.data.ffcv_format import ffcv_problem
from vit.run.dependencies import FFCV_ADVICE, FOR_FFCV

INSTALL = (
    "make setup, or pip install --constraint constraints.txt --editable ."
    if is_checkout()
    else "install a version within these bounds with pip"
)
SHOWN = ("torchvision", "submitit", "ffcv")
SIDE = 16  # pixels of the image that is decoded as a test


def check_software(request: Request) -> Iterator[Finding]:
    """Versions of the libraries, and the extensions."""
    yield from check_versions(request)
    yield from check_decoder(request)
    yield from check_augmentation(request)


def check_versions(request: Request, project: Path = ROOT) -> Iterator[Finding]:
    """Python and the libraries, compared with the bounds in setup.cfg, or in the metadata of an installed copy."""
    bounds, required = _requirements(project)
    inside = is_within(platform.python_version(), bounds)
    advice = "" if inside else f"make a new environment with another Python: {INSTALL}"
    yield Finding("Python", "OK" if inside else "FAIL", f"{platform.python_version()} ({bounds} is tested)", advice)
    found, without = {}, []
    for name, bounds in required:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in FOR_FFCV:
                without.append(name)
            else:
                yield Finding(name, "FAIL", "is not installed", INSTALL)
            continue
        if not is_within(found[name], bounds):
            yield Finding(name, "WARN", f"{found[name]} was not tested, only {bounds}", INSTALL)
            del found[name]
    if without:
        text = f"{' and '.join(without)}: not installed; only data.decoder ffcv and comparisons with FFCV need this"
        yield Finding("FFCV", "WARN", text, FFCV_ADVICE)
    if "torch" in found:
        yield _torch(found.pop("torch"), request)
    named = [f"{name} {found.pop(name)}" for name in SHOWN if name in found]
    yield Finding("libraries", "OK", f"{', '.join(named)}, and {len(found)} others, as in setup.cfg")


def _requirements(project: Path) -> tuple[str, list[tuple[str, str]]]:
    """The bounds of Python's version, and the names and bounds of the libraries."""
    if (project / "setup.cfg").is_file():
        setup = configparser.ConfigParser()
        setup.read(project / "setup.cfg")
        options = setup["options"]
        return options["python_requires"], re.findall(r"^([\w-]+)([^#\n]*)$", options["install_requires"], re.MULTILINE)
    package = importlib.metadata.distribution("vit-slurm")
    lines = [line for line in package.requires or () if ";" not in line]
    return package.metadata["Requires-Python"], re.findall(r"^([\w-]+)(.*)$", "\n".join(lines), re.MULTILINE)


def _torch(version: str, request: Request) -> Finding:
    if "+cpu" in version and (request.cfg is None or request.cfg.device != "cpu"):
        level: Level = "FAIL" if request.cfg is not None and request.cfg.device == "cuda" else "WARN"
        text = f"{version} is a build without CUDA: it trains on CPUs only, even on nodes with GPUs"
        return Finding("torch", level, text, f"{INSTALL}; or --device cpu")
    return Finding("torch", "OK", version)


def is_within(version: str, bounds: str) -> bool:
    """Whether `2.15.0+cu130` is within `>=2.11,<2.16`."""
    for operator, bound in re.findall(r"(>=|==|<)\s*([\d.]+)", bounds):
        pairs = zip_longest(_numbers(version), _numbers(bound), fillvalue=0)
        difference = next((a - b for a, b in pairs if a != b), 0)
        if not {">=": difference >= 0, "==": difference == 0, "<": difference < 0}[operator]:
            return False
    return True


def _numbers(version: str) -> list[int]:
    match = re.match(r"[\d.]*\d", version)
    return [int(part) for part in match[0].split(".")] if match else []


def check_decoder(request: Request) -> Iterator[Finding]:
    """The decoder: built, loaded, and able to decode; and its libjpeg."""
    choice, bicubic = "auto", False
    if request.cfg:
        choice, bicubic = request.cfg.data.decoder, request.cfg.data.interpolation == "bicubic"
    if choice == "ffcv":
        problem = ffcv_problem()
        text = problem or "FFCV's, as set; ours, vit.data._native, has the pixels of torchvision"
        yield Finding("decoder", "FAIL" if problem else "OK", text, FFCV_ADVICE if problem else "")
        return
    try:
        jpeg = native.native_jpeg_library()
    except UserError as error:  # a library that it needs is missing, or is another one
        text, _, advice = str(error).partition("; ")
        yield Finding("decoder", "FAIL", text, advice)
        return
    if jpeg is None:
        yield _not_built(choice, bicubic)
        return
    from PIL import Image  # not at the top: it takes time

    content = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (200, 100, 50)).save(content, "JPEG")
    decoded = native.decode_jpeg(content.getvalue(), SIDE, SIDE)
    built = (
        "" if jpeg.version == jpeg.built_with else f"; it was built with {jpeg.built_with}, whose pixels are the same"
    )
    if decoded.state is native.JpegState.CLEAN:
        yield Finding("decoder", "OK", f"vit.data._native is built, and used, with {jpeg}{built}")
    else:
        text = f"vit.data._native cannot decode a JPEG with {jpeg}: {decoded.message or decoded.state.name}"
        yield Finding("decoder", "FAIL", text, native.BUILD)


def _not_built(choice: str, bicubic: bool) -> Finding:
    """What follows if the C++ decoder was not built."""
    if choice in {"native", "scaled"} or bicubic:
        required = f"data.decoder {choice}" if choice in {"native", "scaled"} else "data.interpolation bicubic"
        text = f"vit.data._native was not built, but {required} requires it"
        return Finding("decoder", "FAIL", text, native.BUILD)
    if problem := ffcv_problem():
        return Finding("decoder", "FAIL", f"vit.data._native was not built, and {problem}", native.BUILD)
    text = "vit.data._native was not built: FFCV's decoder is used, which is slower and less exact"
    return Finding("decoder", "WARN", text, native.BUILD)


def check_augmentation(request: Request) -> Iterator[Finding]:
    """The C++ operations of augmentation, which only CPUs use."""
    if request.cfg and request.cfg.device == "cuda":
        return
    spec = importlib.machinery.PathFinder.find_spec("_pixel_ops", [str(ROOT / "vit" / "augment")])
    advice = f"install a C++ compiler, and {native.AGAIN}"
    if spec is None or spec.origin is None:
        text = "vit.augment._pixel_ops was not built: on CPUs torch augments, with the same pixels, but slower"
        yield Finding("augmentation", "WARN", f"{text}; GPUs do not need it", advice)
        return
    try:
        ctypes.CDLL(spec.origin)["vit_lanczos"]  # the newest of its functions
    except (OSError, AttributeError) as error:
        yield Finding("augmentation", "FAIL", f"vit.augment._pixel_ops cannot be loaded: {error}", advice)
    else:
        yield Finding("augmentation", "OK", "vit.augment._pixel_ops is built; used on CPUs")
