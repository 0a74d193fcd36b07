"""A saved evaluation is whole or refused, and answers what a report asks of it."""

import json
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from vit.config.user_error import UserError
from vit.run.evaluation_file import (
    FILE,
    ConfusedPair,
    Evaluation,
    Mistake,
    find_evaluations,
    read_evaluation,
    write_evaluation,
)

PICTURES = {"mistakes/00-sample-7.png": b"picture"}
SAVED = Evaluation(
    step=12,
    weights="ema",
    data="data/val.beton",
    data_sha256="ab",
    images=8,
    skipped=0,
    limit=None,
    top1=0.625,
    top5=None,
    loss=1.5,
    classes=["n1", "n2", "n3"],
    names=["ant", "bee", "cat"],
    confusion=[(0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 1, 2)],
    mistakes=[
        Mistake(file="mistakes/00-sample-7.png", sample=7, true=1, predicted=0, probability=0.9, true_probability=0)
    ],
)


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Under a name of data set, step and weights; it is found from the run folder, from its own, and beside others."""
    folder = write_evaluation(tmp_path / "evaluation", SAVED, PICTURES)
    assert folder == tmp_path / "evaluation" / "val-step-00000012-ema"
    assert read_evaluation(folder) == SAVED
    assert (folder / SAVED.mistakes[0].file).read_bytes() == b"picture"
    other = write_evaluation(tmp_path / "evaluation", replace(SAVED, weights="last"), PICTURES)
    assert find_evaluations(tmp_path) == find_evaluations(tmp_path / "evaluation") == [folder, other]
    assert find_evaluations(folder) == [folder]
    assert find_evaluations(tmp_path / "nowhere") == []


def test_classes_and_their_confusion_are_counted_per_true_class() -> None:
    """Also for a class without images; the most confused pair is the one with most images."""
    assert SAVED.matrix() == [[3, 1, 0], [2, 2, 0], [0, 0, 0]]
    assert SAVED.images_per_class == [4, 4, 0] and SAVED.correct_per_class == [3, 2, 0]
    assert SAVED.accuracy_per_class == [0.75, 0.5, None]
    pairs = [
        ConfusedPair(true=1, predicted=0, images=2, share=0.5),
        ConfusedPair(true=0, predicted=1, images=1, share=0.25),
    ]
    assert SAVED.most_confused() == pairs and SAVED.most_confused(1) == pairs[:1]
    content = SAVED.to_json()
    assert content["accuracy_per_class"] == [0.75, 0.5, None] and content["most_confused"][0]["images"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "vit-evaluation-9"}, "has format 'vit-evaluation-9', but this version reads only vit-"),
        ({"confusion": [[0, 0, 3]]}, "is damaged: its confusion matrix has 3 images of 8; "),
        ({"confusion": [[0, 9, 8]]}, "is damaged: it has images of a class that it does not name; "),
        ({"names": ["ant"]}, "is damaged: it has 1 names of 3 classes; "),
        ({"mistakes": [{"file": "x.png"}]}, "is damaged: "),
        ({"top1": "high"}, "is damaged: a score is not a number; "),
    ],
)  # fmt: skip
def test_a_file_of_another_version_or_with_wrong_contents_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message names the file, the problem and what to do."""
    folder = write_evaluation(tmp_path, SAVED, PICTURES)
    content = json.loads((folder / FILE).read_text()) | change
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_evaluation(folder)
    assert str(error.value).startswith(f"{folder / FILE} {message}")
    assert "-m vit.evaluate RUN --save" in str(error.value)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """As damaged, in one line; a field that is missing too."""
    folder = write_evaluation(tmp_path, SAVED, PICTURES)
    whole = (folder / FILE).read_bytes()
    assert whole.endswith(b"\n}\n")
    for length in range(0, len(whole) - 2, 7):
        (folder / FILE).write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged"):
            read_evaluation(folder)
    content = json.loads(whole)
    del content["classes"]
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged: it has no 'classes'"):
        read_evaluation(folder)
    os.unlink(folder / FILE)
    with pytest.raises(FileNotFoundError, match=FILE):
        read_evaluation(folder)


def test_an_evaluation_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    """A file size limit stands for a full disk; nothing else is left in the folder."""
    folder = write_evaluation(tmp_path, SAVED, PICTURES)
    later = replace(SAVED, loss=9.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(OSError, match=FILE):
            write_evaluation(tmp_path, later, PICTURES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert read_evaluation(folder) == SAVED and [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert read_evaluation(write_evaluation(tmp_path, later, {})) == later
    assert not list((folder / "mistakes").iterdir())
