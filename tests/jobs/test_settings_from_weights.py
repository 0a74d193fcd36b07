"""A run that starts from weights has their architecture and input, unless other settings are given."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.finished_runs import make_finished_run
from tests.helpers.paths import CHECKOUT, CONFIGS, ROOT
from vit.config.parser import load_config
from vit.config.schema import Config, to_yaml
from vit.run.folder import RunFolder

DEMO = load_config(CONFIGS / "demo.yaml", "--model.depth", "1")
FINETUNE = str(CONFIGS / "finetune.yaml")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo: 28 pixels, mean pooling, fixed positions, its own mean and std."""
    run = tmp_path_factory.mktemp("sources") / "demo"
    make_finished_run(run, replace(DEMO, data=replace(DEMO.data, interpolation="bicubic")))
    return run


def submit(cwd: Path, *words: object, config: str = FINETUNE) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, ROOT / "jobs" / "submit.py", "--cluster", "local", "--config", config, *words]
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def printed(cwd: Path, *words: object, config: str = FINETUNE) -> tuple[Config, list[str]]:
    """The config that is printed with these options, and the comments before it."""
    done = submit(cwd, *words, "--print-config", config=config)
    assert done.returncode == 0, done.stderr
    (cwd / "printed.yaml").write_text(done.stdout)
    return load_config(cwd / "printed.yaml"), [line for line in done.stdout.splitlines() if line.startswith("#")]


def data(train: Path) -> list[object]:
    return ["--data.train", train, "--data.val", train]


def test_the_demo_is_fine_tuned_with_nothing_but_its_run_and_the_data(
    demo: Path, class_sets: Path, tmp_path: Path
) -> None:
    """configs/finetune.yaml on six animals, also after the demo's run was deleted.  Compiling would take longer."""
    source = Path(shutil.copytree(demo, tmp_path / "runs" / "demo"))
    command = ["--init_from", "runs/demo", *data(class_sets / "some.beton"), "--compile", "false"]
    done = submit(tmp_path, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "runs" / "finetune")
    assert (
        f"init_from: {source}: settings taken: model: image_size 28, patch_size 7, width 64, depth 1, heads 4, "
        "mlp_dim 256, pool mean, positions sincos2d, layer_scale 0; "
        "augment: mean [0.286, 0.286, 0.286], std [0.353, 0.353, 0.353]; data: interpolation bicubic\n"
    ) in done.stdout
    few = "few steps: 18 images in batches of 128 (global_batch) are 0.14 steps per epoch, 2 steps in 10 epochs; "
    assert few in done.stdout and few in (run.logs / "rank-0.log").read_text()
    cfg = load_config(run.config)
    assert cfg.model == replace(DEMO.model, num_classes=6, drop_path=0.1)
    assert (cfg.augment.mean, cfg.augment.std, cfg.data.val_crop) == (DEMO.augment.mean, DEMO.augment.std, 0.875)
    (event,) = (event for event in run.events() if event["event"] == "initialized")
    assert event["weights"][2:] == ["initialized: head for 6 classes (pretrained: 10)"]
    shutil.rmtree(source)
    again = submit(tmp_path, *command)
    assert again.returncode == 0 and "is complete" in again.stdout, again.stderr
    other = submit(tmp_path, *command, *data(class_sets / "named.beton"))
    assert other.returncode == 2 and "model.num_classes: 6 in the run, 12 now\nUse another --name" in other.stderr
    longer = submit(tmp_path, *command, "--extend", "11")
    assert longer.returncode == 0 and "settings taken" not in longer.stdout, longer.stderr
    assert load_config(run.config) == replace(cfg, epochs=11)


def test_settings_that_are_given_win_and_must_fit(demo: Path, class_sets: Path, tmp_path: Path) -> None:
    """On the command line or in a file; another image size is possible, another depth is refused as ever."""
    (tmp_path / "mine.yaml").write_text(f"init_from: {demo}\nmodel: {{image_size: 42}}\naugment: {{std: [1, 1, 1]}}\n")
    options = [*data(class_sets / "some.beton"), "--data.interpolation", "bilinear", "--model.num_classes", "9"]
    cfg, _ = printed(tmp_path, *options, config="mine.yaml")
    assert cfg.model == replace(DEMO.model, image_size=42, num_classes=9)
    assert (cfg.augment.mean, cfg.augment.std) == (DEMO.augment.mean, (1.0, 1.0, 1.0))
    assert cfg.data.interpolation == "bilinear"
    refused = submit(tmp_path, *data(class_sets / "some.beton"), "--model.depth", "2", config="mine.yaml")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"submit.py: init_from: {demo} does not fit the model: set model.depth to 1 (not 2)\n"


def test_other_commands_and_a_complete_config_show_the_same(demo: Path, class_sets: Path, tmp_path: Path) -> None:
    """`vit.train` prints the config that submit.py prints; in a sweep each run has the settings of its own weights.

    A config that has all settings is read without the weights.
    """
    wider = replace(DEMO.model, width=128)
    make_finished_run(tmp_path / "wider", replace(DEMO, model=wider))
    options = ["--init_from", demo, *data(class_sets / "some.beton")]
    cfg, comments = printed(tmp_path, *options)
    assert [line.partition(" model:")[0] for line in comments] == [f"# init_from: {demo}: settings taken:"]
    for module in ("vit.train", "vit.verify"):
        command = [sys.executable, "-m", module, "--config", FINETUNE, *map(str, options), "--print-config"]
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        assert done.stdout == (tmp_path / "printed.yaml").read_text()
    sweep = ["--sweep", f"init_from={demo},{tmp_path / 'wider'}", *data(class_sets / "some.beton"), "--dry-run"]
    done = submit(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    assert all(f"# init_from: {run}: settings taken: model: " in done.stdout for run in (demo, tmp_path / "wider"))
    assert "width 128" in done.stdout
    (tmp_path / "whole.yaml").write_text(to_yaml(replace(cfg, init_from=str(tmp_path / "gone"))))
    assert printed(tmp_path, config="whole.yaml") == (replace(cfg, init_from=str(tmp_path / "gone")), [])


def test_before_the_data_are_written_their_number_of_classes_is_asked_for(
    demo: Path, class_sets: Path, tmp_path: Path
) -> None:
    """A job that trains after --prep could not start with another number; a dry run alone says what it assumes."""
    prep = f"train:\n  source: imagefolder\n  path: {class_sets / 'some'}\n  out: {tmp_path / 'new.beton'}\n"
    (tmp_path / "prep.yaml").write_text(prep)
    command = ["--init_from", demo, *data(tmp_path / "new.beton")]
    refused = submit(tmp_path, "--prep", "prep.yaml", *command)
    assert refused.returncode == 2 and refused.stderr == (
        f"submit.py: {tmp_path}/new.beton: its number of classes is not known before it is written; "
        "give --model.num_classes N\n"
    )
    assert not (tmp_path / "new.beton").exists()
    known = submit(tmp_path, "--prep", "prep.yaml", *command, "--model.num_classes", "6", "--dry-run")
    assert known.returncode == 0, known.stderr
    shown = submit(tmp_path, *command, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"# {tmp_path}/new.beton does not exist yet; model.num_classes will be its number" in shown.stdout
    assert "num_classes: 10\n" in shown.stdout


def test_a_dry_run_says_which_settings_weights_would_give_that_do_not_exist_yet(tmp_path: Path) -> None:
    """Damaged ones are refused as ever."""
    shown = submit(tmp_path, "--init_from", "later", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "\n# the defaults stand in for settings that will be taken from it: model.image_size, " in shown.stdout
    (tmp_path / "later").write_text("hello")
    refused = submit(tmp_path, "--init_from", "later", "--dry-run")
    assert refused.returncode == 2 and "later contains no weights: it is damaged" in refused.stderr
