"""`python -m vit.evaluate --save`: confusion matrix and worst mistakes, on any number of ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.class_sets import ANIMALS, FOLDERS, IMAGES, class_config, make_classifier
from tests.helpers.data_sets import VAL, small_config
from tests.helpers.finished_runs import NAMES, make_finished_run
from tests.helpers.ranks import run_ranks
from vit.augment.pipeline import normalize
from vit.config.schema import Config
from vit.data.loader import ValData
from vit.distributed.world import SINGLE_RANK
from vit.evaluate import main
from vit.run.evaluation_file import find_evaluations, read_evaluation


def config(betons: Path) -> Config:
    """Twelve micro-batches, a multiple of 1 and 4 ranks; 100 images in 13 batches of 8."""
    return replace(small_config(betons), global_batch=96)


def contents(folder: Path) -> dict[str, bytes]:
    """All files, by their paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights."""
    folder = tmp_path_factory.mktemp("save") / "run"
    make_finished_run(folder, config(betons))
    return folder


def test_the_saved_evaluation_equals_a_direct_computation(
    run: Path, betons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the EMA, the weights that are used by default: scores, classes, and the worst mistakes with their pixels."""
    assert main([str(run), "--save", "--device", "cpu"]) == 0
    folder = run / "evaluation" / "val-step-00000012-ema"
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {folder}"
    saved = read_evaluation(folder)

    cfg = config(betons)
    (batch,) = ValData(replace(cfg, micro_batch=VAL, global_batch=VAL), SINGLE_RANK).batches()
    ema = make_finished_run(run.parent / "again", cfg).ema
    with torch.inference_mode():
        probabilities = ema(normalize(batch.images, cfg.augment)).softmax(dim=1)
    top, predicted = (values.numpy() for values in probabilities.max(dim=1))
    labels = batch.labels.numpy()
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predicted), 1)
    assert saved.matrix() == expected.tolist() and saved.images == VAL
    assert saved.top1 == (labels == predicted).mean() == sum(saved.correct_per_class) / VAL
    assert saved.classes == saved.names == NAMES
    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(-top[wrong], kind="stable")][:24]
    assert [each.sample for each in saved.mistakes] == worst.tolist()
    for each in saved.mistakes:
        assert (each.true, each.predicted) == (labels[each.sample], predicted[each.sample])
        assert each.probability == pytest.approx(float(top[each.sample]), abs=1e-5)
        assert each.true_probability == pytest.approx(float(probabilities[each.sample, each.true]), abs=1e-5)
        with Image.open(folder / each.file) as picture:
            assert np.array_equal(np.asarray(picture), batch.images[each.sample].numpy())


def test_four_ranks_save_the_same_bytes_as_one(run: Path, tmp_path: Path) -> None:
    """All files, pictures included; and a second evaluation replaces the first."""
    for ranks in (1, 4):
        folder = tmp_path / str(ranks)
        for _ in range(2 if ranks == 1 else 1):
            assert run_ranks(ranks, main, [str(run), "--device", "cpu", "--save", str(folder)]) == [0] * ranks
    found = contents(tmp_path / "4")
    assert found == contents(tmp_path / "1") and len(found) == 25


def test_the_classes_are_those_of_the_data_set(class_sets: Path, tmp_path: Path) -> None:
    """Some of the model's, in another order than the logits."""
    cfg = class_config(class_sets / "named.beton")
    logits = [(5 * i + 3) % 12 for i in range(12)]  # of each animal
    names = [ANIMALS[logits.index(i)] for i in range(12)]
    make_classifier(tmp_path / "run", cfg, class_sets / "animals", logits, names)
    assert main([str(tmp_path / "run"), "--data", str(class_sets / "some.beton"), "--save", "--device", "cpu"]) == 0
    (folder,) = find_evaluations(tmp_path / "run")
    saved = read_evaluation(folder)
    assert saved.classes == saved.names == sorted(FOLDERS["some"]) and saved.weights == "last"
    assert saved.images_per_class == [IMAGES] * 6
    assert all(correct >= 1 for correct in saved.correct_per_class)  # one image of three is known by heart


def test_numbered_folders_get_the_names_of_the_model(class_sets: Path, tmp_path: Path) -> None:
    """As the folders of ImageNet-V2."""
    cfg = class_config(class_sets / "named.beton")
    make_classifier(tmp_path / "run", cfg, class_sets / "animals", range(len(ANIMALS)), ANIMALS)
    assert main([str(tmp_path / "run"), "--data", str(class_sets / "numbers.beton"), "--save", "--device", "cpu"]) == 0
    (folder,) = find_evaluations(tmp_path / "run")
    saved = read_evaluation(folder)
    assert saved.classes[:4] == ["0", "1", "10", "11"] and saved.names[:4] == ["ant", "bee", "koi", "lynx"]


def test_a_folder_that_cannot_be_written_is_named_before_the_evaluation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a checkpoint that is not in a run folder, if no folder is named."""
    (tmp_path / "file").touch()
    lone = tmp_path / "step-00000012"
    lone.symlink_to(run / "checkpoints" / "step-00000012")
    for args, message in (
        ([run, "--save", tmp_path / "file"], f"{tmp_path}/file cannot be made: File exists; name another folder"),
        ([lone, "--save"], f"{lone} is not in a run folder; name another folder to write into: --save FOLDER"),
    ):
        assert main([*map(str, args), "--device", "cpu"]) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"vit.evaluate: {message}") and err.count("\n") == 1 and out == ""
