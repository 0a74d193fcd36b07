"""What doctor.py says about the config: ranks, data sets, initial weights, the login of Weights & Biases."""

import json
import shutil
from pathlib import Path

import pytest

from jobs.readiness.run_config import check_config, check_data, check_wandb
from tests.helpers.finished_runs import make_finished_run
from tests.helpers.paths import CONFIGS
from tests.helpers.readiness import demo, findings, request
from vit.config.parser import load_config
from vit.data.dataset_manifest import manifest_path


@pytest.fixture
def copy(betons: Path, tmp_path: Path) -> Path:
    """A copy of both data sets, which a test may damage."""
    for name in ("train.beton", "val.beton"):
        shutil.copy(betons / name, tmp_path)
        shutil.copy(manifest_path(betons / name), tmp_path)
    return tmp_path


def test_whole_data_sets_are_described(betons: Path) -> None:
    """Their images, size and classes; and how many images are used."""
    found = findings(check_data, demo(betons, "--data.limit", 300))
    assert [finding.level for finding in found.values()] == ["OK"] * 3, found
    assert "train.beton: 512 images, of which 300 are used (data.limit), " in found["data.train"].text
    assert found["classes"].text == "10, the same in both data sets and in the model"
    assert findings(check_data, request()) == findings(check_config, request()) == {}, "they need a config"


def test_a_missing_data_set_is_a_failure_and_the_other_one_is_still_checked(copy: Path) -> None:
    """The file, its manifest, or both; the advice says how to get them."""
    (copy / "train.beton").unlink()
    found = findings(check_data, demo(copy))
    assert (found["data.train"].level, found["data.val"].level) == ("FAIL", "OK")
    assert found["data.train"].text.endswith("train.beton is missing, but its manifest exists")
    (copy / "train.beton.json").unlink()
    found = findings(check_data, demo(copy))
    assert found["data.train"].text.endswith("train.beton does not exist")
    assert f"-m data_prep.write_beton imagefolder FOLDER --out {copy}/train.beton creates" in found["data.train"].advice
    (copy / "val.beton.json").unlink()
    assert "copy its manifest too" in findings(check_data, demo(copy))["data.val"].advice


def test_an_incomplete_data_set_or_manifest_is_a_failure(copy: Path) -> None:
    """A copy that was interrupted; a manifest that is cut in the middle."""
    train, manifest = copy / "train.beton", copy / "val.beton.json"
    train.write_bytes(train.read_bytes()[:-24])
    manifest.write_text(manifest.read_text()[:1000])
    found = findings(check_data, demo(copy))
    assert found["data.train"].level == found["data.val"].level == "FAIL"
    assert "but its manifest says" in found["data.train"].text
    assert "val.beton.json is damaged" in found["data.val"].text


def test_a_data_set_that_cannot_be_read_is_a_failure(copy: Path) -> None:
    """A folder is in its place, so that reading fails."""
    (copy / "val.beton.json").unlink()
    (copy / "val.beton.json").mkdir()
    found = findings(check_data, demo(copy))
    assert (found["data.train"].level, found["data.val"].level) == ("OK", "FAIL")
    assert "Is a directory" in found["data.val"].text


def test_other_classes_are_a_failure(copy: Path) -> None:
    """In the validation set, or in the model."""
    wrong = findings(check_data, demo(copy, "--model.num_classes", 1000))
    assert wrong["classes"].text.startswith("model.num_classes is 1000, but ")
    assert wrong["classes"].advice == "set model.num_classes to 10"
    manifest = copy / "val.beton.json"
    content = json.loads(manifest.read_text())
    content["classes"][3:5] = reversed(content["classes"][3:5])
    manifest.write_text(json.dumps(content))
    assert "has other classes than" in findings(check_data, demo(copy))["classes"].text


def test_ranks_that_do_not_divide_the_batch_are_a_failure(betons: Path) -> None:
    """With the numbers of ranks that do; and so is a micro-batch that mixup cannot mix."""
    assert findings(check_config, demo(betons, "--gpus", 2))["batch"].text == (
        "global batch 128 on 2 ranks: 2 of 4 micro-batches of 32 images each"
    )
    wrong = findings(check_config, demo(betons, "--nodes", 3, "--gpus", 1))["batch"]
    assert wrong.level == "FAIL"
    assert wrong.advice.startswith("use 1, 2 or 4 ranks, or --global_batch 96 for 3 ranks")
    small = findings(check_config, demo(betons, "--micro_batch", 1, "--augment.mixup", 0.8))["batch"]
    assert "too small for mixup" in small.text


def test_initial_weights_that_do_not_exist_are_a_failure(betons: Path, tmp_path: Path) -> None:
    """As submit.py would say."""
    found = findings(check_config, demo(betons, "--init_from", tmp_path / "no.pth"))["initial weights"]
    assert found.level == "FAIL"
    assert "no.pth" in found.text


def test_settings_that_are_taken_from_the_initial_weights_are_shown(betons: Path, tmp_path: Path) -> None:
    """They are those of the run that is checked."""
    make_finished_run(tmp_path / "run", load_config(CONFIGS / "demo.yaml", "--model.depth", "1"))
    data = ("--data.train", betons / "train.beton", "--data.val", betons / "val.beton")
    checked = request("--config", CONFIGS / "finetune.yaml", "--init_from", tmp_path / "run", *data)
    assert checked.cfg is not None and checked.cfg.model.width == 64
    found = findings(check_config, checked)["initial weights"]
    assert found.level == "OK" and "settings taken: model: image_size 28, patch_size 7, width 64, depth 1" in found.text


def test_a_login_of_weights_and_biases_is_found_without_network(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment or in .netrc, for the server that is used; without one, nothing would be sent."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    netrc, online = tmp_path / ".netrc", demo(betons, "--log.wandb", "online")

    def wandb() -> tuple[str, str]:
        found = findings(check_wandb, online)["W&B"]
        return found.level, found.text

    assert findings(check_wandb, demo(betons)) == {}
    assert findings(check_wandb, demo(betons, "--log.wandb", "offline"))["W&B"].level == "OK"
    assert wandb() == ("WARN", "no login for api.wandb.ai: the run trains, but nothing is sent meanwhile")
    netrc.write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    netrc.chmod(0o600)
    assert wandb() == ("OK", f"a login for api.wandb.ai is in {netrc}")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert wandb()[1].startswith("no login for wandb.example.org")
    netrc.write_text("machine api.wandb.ai pass")
    assert wandb()[0] == "WARN" and "cannot be read" in wandb()[1]
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert wandb() == ("OK", "a login for wandb.example.org is in WANDB_API_KEY, which the jobs inherit")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb() == ("WARN", "WANDB_MODE=offline: nothing is sent although log.wandb is online")
