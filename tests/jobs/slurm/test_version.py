"""The version of Slurm in doctor.py, and that each tested version is recorded."""

from pathlib import Path

import pytest

from jobs.login.slurm_queries import SlurmSettings
from jobs.readiness.slurm_checks import check_slurm
from jobs.slurm import scontrol
from jobs.slurm.version import TESTED, remark
from tests.helpers.readiness import request
from tests.jobs.slurm.recording import VERSIONS, read
from tests.slurm_versions.chroots import RELEASES


def test_every_tested_version_is_recorded() -> None:
    """A version without a recording would be tested nowhere; one without a chroot could not be recorded again."""
    assert set(TESTED) == set(VERSIONS) == {each.slurm for each in RELEASES}


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ("20.11.9", "older than 22.05"),
        ("24.05.1", ""),
        ("24.11.5-1", ""),
        ("27.05.0", "newer than 26.05"),
        ("?", ""),
    ],
)
def test_the_doctor_warns_of_a_version_outside_of_the_tested_ones(version: str, warned: str, tmp_path: Path) -> None:
    """It also says how to measure what that version does."""
    of = request("--python", "python3", "--runs-dir", tmp_path)
    of.slurm = SlurmSettings({"SLURM_VERSION": version, "ClusterName": "c"}, {}, [])
    found = next(iter(check_slurm(of)))
    assert (found.level, found.check) == ("WARN" if warned else "OK", "Slurm")
    assert warned in found.text and found.text.startswith(f"{version}, cluster c")
    assert not warned or "--preempt" in found.advice


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recorded_settings_have_the_version(version: str) -> None:
    """As `doctor.py` reports it."""
    found = scontrol.config_of(read(version)["config"].stdout)["SLURM_VERSION"]
    assert found.startswith(f"{version}.") and not remark(found)
