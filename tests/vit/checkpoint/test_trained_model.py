"""A trained model has the readable class names of its data set; a config that cannot be read is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
import yaml
from PIL import Image

from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.data_sets import CLASSES, small_config
from tests.helpers.interrupted_runs import new_run_folder, run_attempt
from tests.helpers.paths import CHECKOUT, ROOT
from tests.helpers.ranks import run_ranks
from vit import evaluate, export, predict
from vit.checkpoint.train_state import TrainState
from vit.checkpoint.trained_model import load_trained_model
from vit.config.parser import config_from_text
from vit.config.schema import to_yaml
from vit.config.user_error import UserError
from vit.data.dataset_manifest import manifest_path
from vit.run.folder import RunFolder
from vit.train import Outcome

IDS = [f"n{i:08}" for i in range(CLASSES)]
NAMES = [f"tench {i}, Tinca tinca" for i in range(CLASSES)]


@pytest.fixture(scope="module")
def imagenet(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose manifest has WordNet ids and names, as that of ImageNet."""
    folder = tmp_path_factory.mktemp("imagenet")
    for name in ("train.beton", "val.beton"):
        shutil.copy(betons / name, folder)
        content = json.loads(manifest_path(betons / name).read_text())
        manifest_path(folder / name).write_text(json.dumps(content | {"classes": IDS, "names": NAMES}))
    return folder


@pytest.fixture(scope="module")
def run(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on it."""
    folder = new_run_folder(tmp_path_factory.mktemp("runs") / "run")
    cfg = replace(small_config(imagenet), epochs=1, global_batch=256, micro_batch=256)
    assert run_ranks(1, run_attempt, cfg, folder) == [Outcome.FINISHED]
    return folder


def test_predictions_and_exports_have_the_readable_names_of_the_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the data set's manifest, from the checkpoint alone; the ids are kept, because names may not be unique."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    assert predict.main([str(run), str(tmp_path / "a.png"), "--json", "--top", "10"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(each["class"] for each in answer["predictions"]) == NAMES
    config = json.loads((export.export(run, "timm", tmp_path / "timm") / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == NAMES
    with safetensors.safe_open(export.export(run, "safetensors", tmp_path / "a.safetensors"), "pt") as file:
        about = {name: json.loads(value) for name, value in file.metadata().items()}
    assert (about["classes"], about["names"]) == (IDS, NAMES)


def test_checkpoints_of_older_versions_get_the_names_from_their_data_set(
    run: Path, imagenet: Path, tmp_path: Path
) -> None:
    """If it still exists and has the same classes; else the ids, or numbers."""
    cfg = small_config(imagenet)
    state = TrainState.fresh(cfg, torch.device("cpu"))
    for data, ids, expected in (
        (imagenet, IDS, NAMES),
        (imagenet, IDS[::-1], IDS[::-1]),
        (tmp_path, IDS, IDS),
        (imagenet, None, [f"class {i}" for i in range(CLASSES)]),
    ):
        about = {"config": to_yaml(small_config(data)), **state.metadata()} | ({"classes": ids} if ids else {})
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        save_checkpoint(RunFolder(folder).checkpoints, 1, state.tensors(), about)
        assert load_trained_model(folder).classes == expected


def test_a_stored_config_that_cannot_be_read_is_an_error_of_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example of a newer version.  The process that loads it goes on; a command names the checkpoint and ends."""
    cfg = small_config(tmp_path)
    state = TrainState.fresh(cfg, torch.device("cpu"))
    for i, (change, problem) in enumerate(
        [({"new_setting": 1}, "unknown setting 'new_setting'"), ({"epochs": -1}, "epochs must be positive, not -1")]
    ):
        about = {"config": yaml.safe_dump(yaml.safe_load(to_yaml(cfg)) | change), **state.metadata()}
        checkpoint = save_checkpoint(RunFolder(tmp_path / str(i)).checkpoints, 1, state.tensors(), about)
        with pytest.raises(UserError) as error:
            load_trained_model(tmp_path / str(i))
        assert str(error.value).startswith(f"the config in {checkpoint} cannot be read: its text, line ")
        assert problem in str(error.value)
        assert predict.main([str(tmp_path / str(i)), "a.png"]) == 2
        assert capsys.readouterr().err == f"vit.predict: {error.value}\n"


def test_a_stored_config_is_never_taken_for_the_path_of_a_file() -> None:
    """However short it is."""
    assert config_from_text("epochs: 3", "a checkpoint").epochs == 3
    with pytest.raises(UserError, match=r"^the config in a checkpoint cannot be read: its text is empty"):
        config_from_text("", "a checkpoint")


@pytest.mark.parametrize("command", ["report", "predict"])
def test_commands_that_draw_work_in_a_cell_of_a_notebook(command: str, run: Path, tmp_path: Path) -> None:
    """Jupyter sets a backend of Matplotlib for its own environment, which does not exist in ours."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    arguments = {
        "report": [str(ROOT / "jobs" / "report.py"), str(run), "--out", str(tmp_path / "curve.png")],
        "predict": ["-m", "vit.predict", str(run), str(tmp_path / "a.png"), "--attention", str(tmp_path / "maps")],
    }[command]
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written = tmp_path / ("curve.png" if command == "report" else "maps/000-a.png")
    assert written.stat().st_size > 0


def test_all_commands_that_use_a_run_choose_its_weights_by_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    """`--which` and `--weights`, with the same values."""
    texts = []
    for main in (predict.main, evaluate.main, export.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        texts.append(" ".join(capsys.readouterr().out.split()))
    for text in texts:
        assert "--which STEP checkpoint: newest, best or a step (default: newest)" in text
        assert "--weights {ema,last} weights to use: their EMA, or those of the last step (default: " in text
