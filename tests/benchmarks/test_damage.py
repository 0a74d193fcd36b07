"""A short campaign with damaged checkpoint files finds no problems."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import ROOT
from vit.data.dataset_manifest import manifest_path


def test_damaged_files_are_detected_and_an_older_checkpoint_is_used(betons: Path, tmp_path: Path) -> None:
    """Truncated, or with one byte changed, on four ranks."""
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        for path in (betons / f"{split}.beton", manifest_path(betons / f"{split}.beton")):
            shutil.copy(path, tmp_path / "data")
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--quick", "--only", "damage"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["damage"]
    assert figures["problems"] == []
    assert sum(figures["found"].values()) == 10
