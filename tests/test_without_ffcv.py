"""Everything but `data.decoder ffcv` and comparisons with FFCV works where FFCV is not installed, to the same bits."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.hidden_packages import FFCV, HiddenPackages
from tests.helpers.images import encode_jpeg, photograph_array
from tests.helpers.local_runs import weights
from tests.helpers.paths import CHECKOUT, ROOT
from vit.data.native import native_library
from vit.run.folder import RunFolder

needs_native = pytest.mark.skipif(native_library() is None, reason="the C++ decoder was not built")
RANKS = 4


@pytest.fixture
def without(tmp_path: Path) -> HiddenPackages:
    """Without FFCV, numba, pandas and OpenCV."""
    return HiddenPackages(tmp_path / "hidden", (*FFCV, "cv2", "opencv-python"))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the project without the C++ decoder."""
    for name in ("vit", "jobs", "data_prep", "configs"):
        ignored = shutil.ignore_patterns("__pycache__", "_native*.so")
        shutil.copytree(ROOT / name, tmp_path / "bare" / name, ignore=ignored)
    shutil.copy(ROOT / "setup.cfg", tmp_path / "bare")
    return tmp_path / "bare"


def train(jpegs: Path, run: Path, *more: str) -> list[str]:
    """The arguments of a short run on JPEGs: 4 ranks, 8 steps."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS), "-m", "vit.train"]
    config = ["--config", str(CHECKOUT / "configs" / "demo.yaml"), "--run-dir", str(run)]
    data = ["--data.train", str(jpegs), "--data.val", str(jpegs), "--data.crop_scale", "[0.3, 1.0]"]
    small = ["--epochs", "2", "--global_batch", "16", "--micro_batch", "4", "--optim.warmup_epochs", "1"]
    return [*launcher, *config, *data, *small, "--model.depth", "1", "--augment.randaugment_ops", "2", *more]


@needs_native
def test_four_ranks_train_to_the_same_bits_without_ffcv(jpegs: Path, without: HiddenPackages, tmp_path: Path) -> None:
    """JPEGs are decoded by our decoder; no process can import FFCV, numba, pandas or OpenCV."""
    runs = [RunFolder(tmp_path / name) for name in ("with", "without")]
    done = subprocess.run(
        [sys.executable, *train(jpegs, runs[0].path)],
        cwd=CHECKOUT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = without.run(*train(jpegs, runs[1].path))
    assert done.returncode == 0, done.stderr
    assert sum(str(runs[1].path) in line and "torch.distributed.run" not in line for line in without.started()) >= RANKS
    first, second = map(weights, runs)
    assert len(first) > 10_000 and first == second
    assert "FFCV" not in done.stdout + done.stderr


def test_the_packages_are_hidden(without: HiddenPackages) -> None:
    """Otherwise the other tests would show nothing."""
    for name in (*FFCV, "cv2"):
        done = without.run("-c", f"import {name}")
        assert done.stderr.endswith(f"ModuleNotFoundError: No module named '{name}'\n")


@needs_native
@pytest.mark.campaign
def test_the_other_commands_work_without_ffcv(jpegs: Path, without: HiddenPackages, tmp_path: Path) -> None:
    """Evaluating, predicting, replaying, exporting, verifying a data set, and training a run twice with kills."""
    run, picture = tmp_path / "run", tmp_path / "cat.jpg"
    picture.write_bytes(encode_jpeg(photograph_array(90, 120, 1)))
    assert without.run(*train(jpegs, run)).returncode == 0
    small = train(jpegs, run)[train(jpegs, run).index("--data.train") :]
    config = ("--config", CHECKOUT / "configs" / "demo.yaml")
    for command in (
        ("vit.evaluate", run, "--data", jpegs),
        ("vit.predict", run, picture),
        ("vit.predict", run, "--data", jpegs, "--samples", "2", "--sheet", tmp_path / "sheet.png"),
        ("vit.replay", run, "--step", "3"),
        ("vit.export", run, "--to", "timm"),
        ("vit.augment", *config, "--data.train", jpegs, "--out", tmp_path / "augmented.png"),
        ("data_prep.check_beton", jpegs),
        ("vit.verify", *config, "--kills", "2", "--ranks", "4,2", *small),
    ):
        done = without.run("-m", *command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_the_decoder_of_ffcv_is_refused_in_one_line(jpegs: Path, without: HiddenPackages, tmp_path: Path) -> None:
    """With the command that installs it."""
    arguments = train(jpegs, tmp_path / "run", "--data.decoder", "ffcv")
    done = without.run(*arguments[arguments.index("vit.train") - 1 :])
    assert done.returncode == 2
    expected = "FFCV's C library is not installed; pip install ffcv==1.0.2 numba pandas (README.md, Without FFCV)"
    assert done.stderr.splitlines()[-1] == f"vit.train: {expected}"


def test_without_any_decoder_a_run_ends_with_one_line(
    jpegs: Path, bare: Path, without: HiddenPackages, tmp_path: Path
) -> None:
    """Neither ours nor FFCV's."""
    without.environment["PYTHONPATH"] = f"{tmp_path / 'hidden'}{os.pathsep}{bare}"
    arguments = train(jpegs, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, *arguments[arguments.index("vit.train") - 1 :]],
        cwd=bare, env=without.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        "vit.train: JPEGs cannot be decoded: the C++ decoder was not built, because libjpeg-turbo's "
    )
    assert ", and FFCV's C library is not installed; install libjpeg-turbo's headers (libjpeg-dev) and " in line


def test_a_run_says_that_ffcv_decodes_in_place_of_our_decoder(jpegs: Path, bare: Path, tmp_path: Path) -> None:
    """If ours was not built."""
    arguments = train(jpegs, tmp_path / "run", "--epochs", "1", "--optim.warmup_epochs", "0.5")
    done = subprocess.run(
        [sys.executable, *arguments[arguments.index("vit.train") - 1 :]],
        cwd=bare, env=os.environ | {"PYTHONPATH": str(bare)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data: images are decoded by FFCV's decoder, which is slower and less exact: the C++ decoder was not" in (
        done.stdout
    )


def write(without: HiddenPackages, source: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Writes a folder of images."""
    options = ("imagefolder", source, "--out", out, "--workers", "2", *more)
    return without.run("-m", "data_prep.write_beton", *options)


@needs_native
def test_data_are_prepared_without_ffcv_and_opencv(without: HiddenPackages, tmp_path: Path) -> None:
    """JPEGs that are copied, and raw images, to the bytes that OpenCV's presence gives; others need OpenCV."""
    for i in range(4):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(photograph_array(60 + i, 90, i)))
    with_opencv = HiddenPackages(tmp_path / "ffcv")
    for mode in ("jpg", "raw"):
        outs = [tmp_path / f"{mode}-{name}.beton" for name in ("with", "without")]
        for packages, out in zip((with_opencv, without), outs, strict=True):
            done = write(packages, tmp_path / "images", out, "--mode", mode)
            assert done.returncode == 0, done.stderr
        assert outs[0].read_bytes() == outs[1].read_bytes()
    Image.fromarray(photograph_array(60, 90, 9)).save(tmp_path / "images" / "class0" / "9.png")
    done = write(without, tmp_path / "images", tmp_path / "more.beton", "--on-bad", "skip")
    assert done.returncode == 1 and not (tmp_path / "more.beton").exists()
    assert "9.png: images must be scaled or encoded, but OpenCV cannot be imported (No module named 'cv2'); " in (
        done.stderr
    )
    assert "opencv-python-headless" in done.stderr and "Traceback" not in done.stderr


def test_the_doctor_warns_that_ffcv_is_missing(without: HiddenPackages) -> None:
    """Not a failure: training does not need it."""
    done = without.run(ROOT / "jobs" / "doctor.py", "--json")
    (line,) = (line for line in done.stdout.splitlines() if '"FFCV"' in line)
    assert '"level": "WARN"' in line and "ffcv and numba and pandas: not installed" in line
    assert "pip install ffcv==1.0.2 numba pandas" in line


def test_an_installation_without_ffcv_requires_nothing_of_it(tmp_path: Path) -> None:
    """VIT_WITHOUT_FFCV=1; a normal one requires it."""
    found = {}
    for variable in ("", "0", "1"):
        folder = tmp_path / f"metadata{variable}"
        folder.mkdir()
        command = [sys.executable, "-W", "ignore", "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
        environment = os.environ | {"VIT_WITHOUT_FFCV": variable}
        subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True)
        text = next(folder.glob("*/PKG-INFO")).read_text()
        required = [line.split()[1] for line in text.splitlines() if line.startswith("Requires-Dist: ")]
        found[variable] = {re.split("[<>=;]", line)[0] for line in required}
    assert found[""] == found["0"] and found[""] >= {"ffcv", "torch"}
    assert found[""] - found["1"] == set(FFCV)
