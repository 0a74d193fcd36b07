"""Evaluation on data sets that have other classes than the training set: by name, by index, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.class_sets import (
    ANIMALS,
    FOLDERS,
    IMAGENET,
    IMAGES,
    WNIDS,
    class_config,
    logits_by_hand,
    make_classifier,
)
from vit import predict
from vit.checkpoint.train_state import TrainState
from vit.evaluate import main
from vit.run.evaluation_file import find_evaluations, read_evaluation


@pytest.fixture
def run(class_sets: Path, tmp_path: Path) -> Path:
    """A run that was trained on the twelve animals, under their names."""
    cfg = class_config(class_sets / "named.beton")
    make_classifier(tmp_path / "run", cfg, class_sets / "animals", range(len(ANIMALS)), ANIMALS)
    return tmp_path / "run"


def run_evaluate(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([*map(str, args), "--device", "cpu"])
    out, err = capsys.readouterr()
    return code, out, err


def evaluated(capsys: pytest.CaptureFixture[str], run: Path, beton: Path) -> dict[str, Any]:
    """What `--json` prints."""
    code, out, err = run_evaluate(capsys, run, "--data", beton, "--json")
    assert (code, err) == (0, "")
    return dict(json.loads(out))


def score_by_hand(logits: Tensor) -> dict[str, float]:
    """Of images in the order of their classes, with one column of logits per class."""
    labels = torch.arange(logits.shape[1]).repeat_interleave(IMAGES)
    position = (logits > logits.gather(1, labels[:, None])).sum(dim=1)
    top1, top5 = ((position < k).double().mean().item() for k in (1, 5))
    return {"top1": top1, "top5": top5, "loss": F.cross_entropy(logits.double(), labels).item()}


def assert_same_score(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found["top1"] == expected["top1"] and found["top5"] == expected["top5"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_data_set_with_some_of_the_classes_is_scored_over_their_logits_alone(
    run: Path, class_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accuracy and loss, found by name; the scores equal a computation image by image, and the output says it."""
    cfg = class_config(class_sets / "named.beton")
    state = make_classifier(run.parent / "again", cfg, class_sets / "animals", range(len(ANIMALS)), ANIMALS)
    names = sorted(FOLDERS["some"])
    logits = logits_by_hand(state, cfg, class_sets / "animals", names)
    expected = score_by_hand(logits[:, [ANIMALS.index(name) for name in names]])
    labels = torch.tensor([ANIMALS.index(name) for name in names]).repeat_interleave(IMAGES)
    assert 0.3 < (logits.argmax(dim=1) == labels).double().mean().item() < expected["top1"] < 1
    found = evaluated(capsys, run, class_sets / "some.beton")
    assert found["classes"] == {"evaluated": 6, "model": 12, "matched": "name"}
    assert_same_score(found["last"], expected)
    _, out, _ = run_evaluate(capsys, run, "--data", class_sets / "some.beton")
    assert out.splitlines()[1] == "6 of the model's 12 classes, matched by name; the other logits are left out"


def test_the_same_classes_are_scored_alike_whatever_their_order_and_names(
    run: Path, class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders named 0 to 11, which sort as 0, 1, 10, 11, 2; and a model whose classes are in another order."""
    expected = evaluated(capsys, run, class_sets / "named.beton")
    assert expected["classes"] == {"evaluated": 12, "model": 12, "matched": "order"}
    assert 0.3 < expected["last"]["top1"] < 1  # one image of three is known by heart
    by_index = evaluated(capsys, run, class_sets / "numbers.beton")
    assert by_index["classes"] == {"evaluated": 12, "model": 12, "matched": "index"}
    assert_same_score(by_index["last"], expected["last"])
    _, out, _ = run_evaluate(capsys, run, "--data", class_sets / "numbers.beton")
    assert out.splitlines()[1] == "classes matched by index"

    cfg = class_config(class_sets / "named.beton")
    logits = [(5 * i + 3) % 12 for i in range(12)]  # of each animal
    names = [ANIMALS[logits.index(i)] for i in range(12)]
    make_classifier(tmp_path / "permuted", cfg, class_sets / "animals", logits, names)
    permuted = evaluated(capsys, tmp_path / "permuted", class_sets / "named.beton")
    assert permuted["classes"] == {"evaluated": 12, "model": 12, "matched": "name"}
    assert_same_score(permuted["last"], expected["last"])


def imagenet_model(run: Path, class_sets: Path) -> TrainState:
    """A run with 1,000 classes, named by WordNet ids, four of which are animals of the data sets."""
    cfg = class_config(class_sets / "wnids.beton", num_classes=len(WNIDS))
    logits = [*IMAGENET, *range(100, 108)]
    return make_classifier(run, cfg, class_sets / "animals", logits, WNIDS)


def test_the_folders_of_imagenet_a_r_and_v2_are_found_among_the_classes_of_imagenet(
    class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """-A and -R by WordNet id, V2 by index; as the papers do it: argmax of logits[:, indices]."""
    state = imagenet_model(tmp_path / "run", class_sets)
    cfg = class_config(class_sets / "wnids.beton", num_classes=len(WNIDS))
    logits = logits_by_hand(state, cfg, class_sets / "animals", list(IMAGENET.values()))
    expected = score_by_hand(logits[:, list(IMAGENET)])
    for name, how in (("wnids", "name"), ("imagenet-v2", "index")):
        found = evaluated(capsys, tmp_path / "run", class_sets / f"{name}.beton")
        assert found["classes"] == {"evaluated": 4, "model": 1000, "matched": how}
        assert_same_score(found["last"], expected)


def test_top_5_of_five_classes_or_fewer_is_not_printed(
    class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is always 100 %; the model has 1,000 classes, and the data set four of them."""
    imagenet_model(tmp_path / "run", class_sets)
    _, out, _ = run_evaluate(capsys, tmp_path / "run", "--data", class_sets / "wnids.beton", "--save")
    assert out.splitlines()[2].split() == ["weights", "top-1", "loss"]
    assert len(out.splitlines()[3].split()) == 3
    assert read_evaluation(*find_evaluations(tmp_path / "run")).top5 is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("unknown", "does not have 2 of the 3 classes of {beton}: 'yak', 'zebra'; write the data set with the names"),
        ("capital", "does not have 1 of the 12 classes of {beton}: 'Cat'; "),
        ("wnids", "does not have 4 of the 4 classes of {beton}: 'n10000000', 'n10000014', 'n10000070' and 1 more; "),
        ("imagenet-v2", "does not have 4 of the 4 classes of {beton}: '0', '10', '2' and 1 more; "),
    ],
)
def test_a_data_set_with_a_class_that_the_model_does_not_have_is_refused(
    data: str, message: str, run: Path, class_sets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, in one line, before anything is evaluated."""
    beton = class_sets / f"{data}.beton"
    code, out, err = run_evaluate(capsys, run, "--data", beton)
    assert (code, out) == (2, "")
    assert message.format(beton=beton) in err and err.startswith("vit.evaluate: ") and err.count("\n") == 1


def test_a_checkpoint_without_class_names_is_compared_by_their_number(
    class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older ones are; only folders named 0 to 11 are found by index."""
    cfg = class_config(class_sets / "named.beton")
    make_classifier(tmp_path / "run", cfg, class_sets / "animals", range(len(ANIMALS)), None)
    found = {name: evaluated(capsys, tmp_path / "run", class_sets / f"{name}.beton") for name in ("named", "numbers")}
    assert [found[name]["classes"]["matched"] for name in found] == ["number", "index"]
    assert_same_score(found["numbers"]["last"], found["named"]["last"])
    code, _, err = run_evaluate(capsys, tmp_path / "run", "--data", class_sets / "some.beton")
    assert code == 2 and "has 6 classes, but " in err and "is for 12 and has no names of them" in err


def test_names_of_another_number_of_classes_than_the_head_are_refused(
    class_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`predict` would print wrong names, or none."""
    cfg = class_config(class_sets / "named.beton")
    make_classifier(tmp_path / "run", cfg, class_sets / "animals", range(len(ANIMALS)), ANIMALS[:11])
    image = str(class_sets / "animals" / "ant" / "0.jpg")
    for code in (predict.main([str(tmp_path / "run"), image]), main([str(tmp_path / "run")])):
        assert code == 2
    assert capsys.readouterr().err.count("has the names of 11 classes, but its head is for 12: ") == 2
