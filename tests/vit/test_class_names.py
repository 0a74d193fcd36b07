"""Training refuses data sets and pretrained heads with other classes, although there are as many."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.class_sets import ANIMALS, class_config, make_classifier
from tests.helpers.interrupted_runs import Fault, checkpoints, new_run_folder, run_attempt
from tests.helpers.ranks import run_ranks
from vit.checkpoint.saved_classes import saved_classes
from vit.data.dataset_manifest import manifest_path
from vit.export import export
from vit.run.folder import RunFolder
from vit.train import Outcome

DIFFERENCES = "class 0 is 'ant' in {} but 'Cat' in capital.beton, class 1 is 'bee' in {} but 'ant' in capital.beton"


def renamed_copy(beton: Path, folder: Path, classes: list[str]) -> Path:
    """The same file, whose manifest has other class names."""
    copy = folder / beton.name
    shutil.copy(beton, copy)
    manifest = json.loads(manifest_path(beton).read_text())
    manifest_path(copy).write_text(json.dumps(manifest | {"classes": classes}))
    return copy


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_validation_set_with_other_classes_is_refused(ranks: int, class_sets: Path, tmp_path: Path) -> None:
    """Folders `Cat ant bee …` against `ant bee cat …`: the accuracy would be near 0.  Before the first step."""
    cfg = class_config(class_sets / "named.beton", class_sets / "capital.beton")
    expected = DIFFERENCES.format("named.beton", "named.beton")
    message = (
        rf"capital\.beton has other classes than .*named\.beton: {expected}.* only capital\.beton has 'Cat'; write"
    )
    with pytest.raises(ValueError, match=message):
        run_ranks(ranks, run_attempt, cfg, new_run_folder(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_validation_set_without_one_of_the_classes_is_refused(class_sets: Path, tmp_path: Path) -> None:
    """The class that only one side has is named."""
    cfg = class_config(class_sets / "named.beton", class_sets / "some.beton")
    with pytest.raises(ValueError, match=r"only named\.beton has 'ant', 'cat', 'eel' and 3 more; named\.beton has 12 "):
        run_ranks(1, run_attempt, cfg, new_run_folder(tmp_path / "run"))


def test_subsets_drawn_by_different_seeds_are_refused(class_sets: Path, tmp_path: Path) -> None:
    """`write_beton --subset 6` gave both sets six classes, but not the same ones."""
    cfg = class_config(class_sets / "subset-0.beton", class_sets / "subset-1.beton", num_classes=6)
    with pytest.raises(
        ValueError, match=r"only subset-0\.beton has .*; only subset-1\.beton has .*--subset and --seed"
    ):
        run_ranks(1, run_attempt, cfg, new_run_folder(tmp_path / "run"))


def test_a_run_is_not_resumed_on_other_classes(class_sets: Path, tmp_path: Path) -> None:
    """Neither on renamed ones, which no digest of the images shows, nor with another validation set."""
    run, cfg = new_run_folder(tmp_path / "run"), class_config(class_sets / "named.beton")
    assert run_ranks(1, run_attempt, cfg, run, Fault(0, 0, signal.SIGTERM)) == [Outcome.STOPPED]
    saved = checkpoints(run)
    renamed = renamed_copy(class_sets / "named.beton", tmp_path, ["Ant", *ANIMALS[1:]])
    message = r"step-\d+ is of other classes than .*: class 0 is 'ant' in the checkpoint but 'Ant' in named\.beton; "
    with pytest.raises(ValueError, match=message + ".*--override-resume data.class_names"):
        run_ranks(1, run_attempt, class_config(renamed), run)
    with pytest.raises(ValueError, match=r"only capital\.beton has 'Cat'"):
        run_ranks(1, run_attempt, class_config(class_sets / "named.beton", class_sets / "capital.beton"), run)
    assert checkpoints(run) == saved
    allowed = ("data.class_names",)
    assert run_ranks(1, run_attempt, class_config(renamed), run, None, allowed) == [Outcome.FINISHED]
    assert saved_classes(run) == ["Ant", *ANIMALS[1:]]


def test_a_pretrained_head_for_other_classes_is_refused(class_sets: Path, tmp_path: Path) -> None:
    """From a run, a checkpoint and an exported file; with `init_head` new the run starts with a new head."""
    pretrained, cfg = tmp_path / "pretrained", class_config(class_sets / "capital.beton")
    make_classifier(pretrained, cfg, class_sets / "animals", range(len(ANIMALS)), ANIMALS)
    exported = export(pretrained, "safetensors", tmp_path / "weights.safetensors")
    run = new_run_folder(tmp_path / "run")
    for source in (pretrained, checkpoints(pretrained)[0], exported):
        expected = DIFFERENCES.format(source.name, source.name)
        with pytest.raises(
            ValueError, match=rf"{source} has a head for other classes than .*: {expected}.*--init_head"
        ):
            run_ranks(1, run_attempt, replace(cfg, init_from=str(source)), run)
    new_head = replace(cfg, init_from=str(pretrained), init_head="new", epochs=1)
    assert run_ranks(1, run_attempt, new_head, run) == [Outcome.FINISHED]
    event = RunFolder(run).last("initialized")
    assert event is not None and any(line.startswith("initialized: head for 12 classes") for line in event["weights"])


def test_a_pretrained_head_for_the_same_classes_is_kept(class_sets: Path, tmp_path: Path) -> None:
    """With weights whose class names are not known, the number is compared."""
    cfg = replace(class_config(class_sets / "named.beton"), epochs=1)
    for name, names in (("same", ANIMALS), ("unknown", None)):
        make_classifier(tmp_path / name, cfg, class_sets / "animals", range(len(ANIMALS)), names)
        run = new_run_folder(tmp_path / f"{name}-run")
        assert run_ranks(1, run_attempt, replace(cfg, init_from=str(tmp_path / name)), run) == [Outcome.FINISHED]
        event = RunFolder(run).last("initialized")
        assert event is not None and not any("head" in line for line in event["weights"])


def test_the_classes_of_exported_weights_are_known(class_sets: Path, tmp_path: Path) -> None:
    """In the formats that can store them; numbered classes of a run without names are not names."""
    cfg = class_config(class_sets / "named.beton")
    for name, names in (("known", ANIMALS), ("unknown", None)):
        make_classifier(tmp_path / name, cfg, class_sets / "animals", range(len(ANIMALS)), names)
        assert saved_classes(tmp_path / name) == names
        assert saved_classes(export(tmp_path / name, "timm")) == names
        assert saved_classes(export(tmp_path / name, "safetensors")) == names
        assert saved_classes(export(tmp_path / name, "torchvision")) is None
    assert saved_classes(tmp_path / "nothing") is None
