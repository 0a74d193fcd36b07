"""A short fault campaign with disks that cannot be read finds no problems, and notices code that hides the errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.faults import layer, read_layer, readers
from vit.data.dataset_manifest import manifest_path

pytestmark = pytest.mark.skipif(layer.missing() is not None, reason=str(layer.missing()))
PYTHONS = readers.interpreters()


@pytest.fixture(scope="module")
def figures(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of the short campaign: what `chaos.py --quick --only reads` runs, on data sets that exist already."""
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "data").mkdir()
    for split in ("train", "val"):
        for path in (betons / f"{split}.beton", manifest_path(betons / f"{split}.beton")):
            shutil.copy(path, folder / "data")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= read_layer.environment(folder / "reads" / "runs", folder / "reads" / "layer")
    command = [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--work", "reads", "--quick"]
    command += ["--folder", str(folder / "reads")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    out: dict[str, Any] = json.loads((folder / "reads.json").read_text())
    return out


def test_a_disk_that_cannot_be_read_costs_no_step_and_the_message_names_the_file(figures: dict[str, Any]) -> None:
    """Whichever read of whichever file fails, in training and in the commands that read a run folder."""
    assert figures["problems"] == []
    commands = {row["command"] for row in figures["table"]}
    assert {"start", "resume", "export", "evaluate", "predict", "status", "report"} <= commands


@pytest.mark.parametrize("trainer", ["begins again", "quarantines"])
def test_the_campaign_notices_a_trainer_that_takes_an_unreadable_disk_for_something_else(
    figures: dict[str, Any], trainer: str
) -> None:
    """Otherwise the test above would prove nothing."""
    expected = {
        "begins again": "the attempt began at step 0, though 3 is saved",
        "quarantines": "an intact checkpoint was quarantined",
    }
    assert figures["noticed"][trainer][0].startswith(expected[trainer])


@pytest.mark.parametrize("version", readers.VERSIONS)
def test_no_reader_hides_an_error_in_any_python(version: str, tmp_path: Path) -> None:
    """`Path.glob` and others hide more errors in newer Pythons; the wrong readers show that this is noticed."""
    if version not in PYTHONS:
        pytest.skip(f"Python {version} is not installed")
    found = readers.run_in(PYTHONS[version], tmp_path, count=25)
    assert found["problems"] == []
    assert found["python"].startswith(f"{version}.")
    assert found["cases"] > 150
    assert min(found["noticed"].values()) > 0
