"""submit.py compares class names before it submits anything, and in a dry run; `jobs` does so without torch."""

import json
import shutil
from pathlib import Path

import pytest

from jobs.submit import main
from tests.helpers.class_sets import ANIMALS, class_config, make_classifier
from tests.helpers.paths import CONFIGS
from vit.config.schema import flatten, to_yaml
from vit.data.dataset_manifest import manifest_path
from vit.run.folder import RunFolder


@pytest.fixture(autouse=True)
def _new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def submit(capsys: pytest.CaptureFixture[str], train: Path, val: Path, *options: str) -> tuple[int, str, str]:
    """The exit code and what is printed."""
    data = ["--data.train", str(train), "--data.val", str(val), "--model.num_classes", str(len(ANIMALS))]
    code = main(["--config", str(CONFIGS / "demo.yaml"), "--cluster", "local", *data, *options])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_validation_set_with_other_classes_is_refused_at_submission(
    options: list[str], class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything is written."""
    code, out, err = submit(capsys, class_sets / "named.beton", class_sets / "capital.beton", *options)
    assert (code, out) == (2, "")
    assert "class 0 is 'ant' in named.beton but 'Cat' in capital.beton, class 1 " in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_data_sets(class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If one of them exists already, its number of classes is compared."""
    nothing = tmp_path / "nothing.beton"
    assert submit(capsys, class_sets / "named.beton", nothing, "--dry-run")[0] == 0
    assert submit(capsys, nothing, class_sets / "named.beton", "--dry-run")[0] == 0
    code, _, err = submit(capsys, nothing, class_sets / "some.beton", "--dry-run")
    assert code == 2 and "model.num_classes is 12, but " in err and "some.beton has 6 classes" in err


def test_a_run_is_not_submitted_again_with_renamed_classes(
    class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest of the same file was changed; `--override-resume data.class_names` accepts it."""
    train = Path(shutil.copy(class_sets / "named.beton", tmp_path / "train.beton"))
    manifest = json.loads(manifest_path(class_sets / "named.beton").read_text())
    manifest_path(train).write_text(json.dumps(manifest))
    cfg = class_config(train)
    make_classifier(tmp_path / "runs" / "mine", cfg, class_sets / "animals", range(len(ANIMALS)), ANIMALS)
    (tmp_path / "mine.yaml").write_text(to_yaml(cfg))
    RunFolder(tmp_path / "runs" / "mine").config.write_text(to_yaml(cfg))
    command = ["--config", str(tmp_path / "mine.yaml"), "--cluster", "local", "--dry-run"]
    assert main(command) == 0
    manifest_path(train).write_text(json.dumps(manifest | {"classes": ["Ant", *ANIMALS[1:]]}))
    capsys.readouterr()
    assert main(command) == 2
    assert "class 0 is 'ant' in the checkpoint but 'Ant' in train.beton" in capsys.readouterr().err
    assert main([*command, "--override-resume", "data.class_names"]) == 0


def test_a_pretrained_head_for_other_classes_is_refused_at_submission(
    class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless the run has a new head, or other weights are given whose classes are not known."""
    cfg = class_config(class_sets / "named.beton")
    for name, names in (("pretrained", ANIMALS), ("unknown", None)):
        make_classifier(tmp_path / name, cfg, class_sets / "animals", range(len(ANIMALS)), names)
    capital, source = class_sets / "capital.beton", str(tmp_path / "pretrained")
    model = [f"--model.{name}={value}" for name, value in flatten(cfg.model).items()]
    options = [*model, "--dry-run", "--init_from"]
    code, out, err = submit(capsys, capital, capital, *options, source)
    assert (code, out) == (2, "")
    assert "pretrained has a head for other classes than " in err and "use --init_head new" in err
    assert "class 0 is 'ant' in pretrained but 'Cat' in capital.beton" in err and err.count("\n") == 1
    assert submit(capsys, capital, capital, *options, source, "--init_head", "new")[0] == 0
    assert submit(capsys, capital, capital, *options, str(tmp_path / "unknown"))[0] == 0
    assert submit(capsys, class_sets / "named.beton", class_sets / "named.beton", *options, source)[0] == 0
