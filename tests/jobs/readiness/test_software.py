"""What doctor.py says about versions and about extensions that are missing or broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.login.run_files import PACKAGES
from jobs.readiness.software import check_decoder, check_versions, is_within
from tests.helpers.paths import ROOT
from tests.helpers.readiness import findings, request


def fake_version(folder: Path, name: str, version: str) -> None:
    """Makes importlib.metadata find this version of a library, as if it were installed."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_installed_versions_are_those_that_were_tested() -> None:
    """Here, where the tests run."""
    found = findings(check_versions, request())
    assert {finding.level for finding in found.values()} == {"OK"}, found
    assert found["libraries"].text.startswith("torchvision ")


def test_a_version_that_was_not_tested_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version and the tested ones; that of FFCV is exact."""
    monkeypatch.syspath_prepend(str(tmp_path))
    fake_version(tmp_path, "torch", "2.9.1")
    fake_version(tmp_path, "ffcv", "1.0.3")
    found = findings(check_versions, request())
    assert (found["torch"].level, found["torch"].text) == ("WARN", "2.9.1 was not tested, only >=2.11,<2.16")
    assert (found["ffcv"].level, found["ffcv"].text) == ("WARN", "1.0.3 was not tested, only ==1.0.2")


def test_a_torch_without_cuda_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would train on the CPUs of a node with GPUs; with device cuda it cannot train at all."""
    monkeypatch.syspath_prepend(str(tmp_path))
    fake_version(tmp_path, "torch", "2.15.0+cpu")
    demo = ("--config", ROOT / "configs" / "demo.yaml", "--device")
    levels = [findings(check_versions, request(*demo, device))["torch"].level for device in ("auto", "cuda", "cpu")]
    assert levels == ["WARN", "FAIL", "OK"]


def test_a_library_that_is_missing_and_another_python_are_failures(tmp_path: Path) -> None:
    """As if the project required a newer Python and one more library."""
    text = (ROOT / "setup.cfg").read_text()
    text = text.replace("python_requires = >=3.11", "python_requires = >=3.99")
    (tmp_path / "setup.cfg").write_text(text.replace("    tqdm>=4.60\n", "    tqdm>=4.60\n    no-such-library>=1\n"))
    found = {finding.check: finding for finding in check_versions(request(), tmp_path)}
    assert found["Python"].level == found["no-such-library"].level == "FAIL"
    assert found["no-such-library"].text == "is not installed"
    assert "make setup" in found["no-such-library"].advice


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.15.0", ">=2.11,<2.16", True), ("2.15.0+cu130", ">=2.11,<2.16", True), ("2.16", ">=2.11,<2.16", False),
        ("2.16.0rc1", ">=2.11,<2.16", False), ("2.9", ">=2.11", False), ("1.0.2", "==1.0.2", True), ("7", "", True),
    ],
)  # fmt: skip
def test_versions_are_compared_number_by_number(version: str, bounds: str, expected: bool) -> None:
    """2.9 is older than 2.11."""
    assert is_within(version, bounds) == expected


@pytest.fixture(scope="module")
def bare_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without the C++ extensions, as after an installation without a compiler."""
    folder = tmp_path_factory.mktemp("project")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def doctor_in(project: Path, *options: str) -> dict[str, dict[str, str]]:
    """The findings of the command in a copy of the project."""
    command = [sys.executable, str(project / "jobs" / "doctor.py"), "--json", *options]
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"} | {"PYTHONPATH": ""}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert not done.stderr, done.stderr
    return {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}


def test_extensions_that_were_not_built_are_named_with_what_follows(bare_copy: Path) -> None:
    """Slower without them; a setting that needs the decoder cannot work."""
    found = doctor_in(bare_copy)
    assert found["decoder"]["level"] == found["augmentation"]["level"] == "WARN"
    assert "FFCV's decoder is used, which is slower" in found["decoder"]["text"]
    assert "make setup again" in found["decoder"]["advice"]
    config = ("--config", str(ROOT / "configs" / "demo.yaml"))
    needed = doctor_in(bare_copy, *config, "--data.interpolation", "bicubic", "--device", "cuda")
    assert needed["decoder"]["level"] == "FAIL"
    assert "data.interpolation bicubic requires it" in needed["decoder"]["text"]
    assert "augmentation" not in needed, "GPUs do not need it"
    assert doctor_in(bare_copy, *config, "--data.decoder", "ffcv")["decoder"]["level"] == "OK"
    assert doctor_in(bare_copy, *config, "--data.decoder", "native")["decoder"]["level"] == "FAIL"


def test_extensions_that_cannot_be_loaded_are_failures(bare_copy: Path, tmp_path: Path) -> None:
    """As on a kind of machine for which they were not built."""
    project = tmp_path / "project"
    shutil.copytree(bare_copy, project)
    built = [*(ROOT / "vit").rglob("_native*.so"), *(ROOT / "vit").rglob("_pixel_ops*.so")]
    assert len(built) == 2
    for path in built:
        (project / path.relative_to(ROOT)).write_bytes(b"of another machine")
    found = doctor_in(project)
    for name in ("decoder", "augmentation"):
        assert found[name]["level"] == "FAIL"
        assert "cannot be loaded" in found[name]["text"]


def test_the_decoder_in_use_is_named_with_its_libjpeg() -> None:
    """It has decoded an image with it."""
    found = findings(check_decoder, request())["decoder"]
    assert (found.level, "libjpeg-turbo" in found.text, "is built, and used" in found.text) == ("OK", True, True)
    other = request("--config", ROOT / "configs" / "demo.yaml", "--data.decoder", "ffcv")
    assert findings(check_decoder, other)["decoder"].text.startswith("FFCV's, as set")
