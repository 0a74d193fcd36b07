"""The loader benchmark, which the README quotes, runs and prints all its figures."""

import importlib.util
import json
import subprocess
import sys

from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
DOCUMENTED = {
    *("vs_torchvision", "vs_torchvision_io", "vs_stock_ffcv", "vs_dali", "vs_webdataset", "vs_decode"),
    *("vs_torchvision_raw", "startup_s", "memory_mb", "images_per_s"),
}


def test_the_loader_benchmark_prints_its_figures_and_marks_loaders_that_are_not_installed() -> None:
    """With ours and one that may be missing: then its figures are null, and the table says that it is not installed."""
    command = [sys.executable, str(BENCHMARKS / "loader.py"), "--quick", "--only", "ours", "webdataset"]
    done = subprocess.run([*command, "--images", "8", "--seconds", "0.1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() >= DOCUMENTED
    assert figures["images_per_s"]["ours"]["2"] > 0 and figures["startup_s"] > 0 and figures["memory_mb"] > 0
    assert figures["vs_torchvision"] is None  # it was not included
    missing = importlib.util.find_spec("webdataset") is None
    assert (figures["vs_webdataset"] is None) == (figures["images_per_s"]["webdataset"] is None) == missing
    assert ("not installed" in done.stdout) == missing, done.stdout
