"""`python -m vit.replay RUN --step N` computes the bits of the run, and changes nothing in its folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.data_sets import small_config
from tests.helpers.interrupted_runs import STEPS, checkpoints, logged_samples, save_each_step, short_config
from tests.helpers.loading import overwrite
from tests.helpers.replayed_runs import assert_refused, contents, replay, replayed, train_on
from vit.checkpoint.format import step_of
from vit.data.dataset_manifest import manifest_path
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(trained, tmp_path / "my-run")
    return tmp_path / "my-run"


def test_each_step_has_the_bits_that_the_run_recorded(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on four ranks, replayed on one, from checkpoints and from the initial weights; nothing is written."""
    before, recorded = contents(trained), {r["step"]: r for r in read_lines(RunFolder(trained).metrics) if "loss" in r}
    samples = {(step, shard): samples for step, shard, samples in logged_samples(trained)}
    oldest = step_of(checkpoints(trained)[-1])
    assert 0 < oldest < STEPS
    for step in range(1, STEPS + 1):
        found = replayed(capsys, trained, step)
        assert found["same"]
        assert {name: found[name] for name in ("loss", "lr", "grad_norm")} == {
            name: recorded[step][name] for name in ("loss", "lr", "grad_norm")
        }
        used = [each["samples"] for each in found["micro_batches"]]
        assert used == [samples[step, shard] for shard in range(4)]
    assert contents(trained) == before


def test_what_is_printed_is_a_table_for_people(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values and verdict, micro-batches, the worst samples with their classes and what is mixed into them."""
    assert replay(trained, "--step", "3") == 0
    out = capsys.readouterr().out
    assert f"step 3 of {STEPS}" in out
    assert out.count("the same bits") == 3
    assert "micro-batch  loss" in out and " of sample " in out
    assert "Ankle boot" in out or "Sandal" in out or "Shirt" in out


def test_a_damaged_or_unreadable_checkpoint_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, and an older one, or the initial state, leads to the same bits."""
    first, second = checkpoints(run)[:2]
    size = (first / "part-000.bin").stat().st_size
    overwrite(first / "part-000.bin", size // 2, b"damage")
    (second / "manifest.json").rename(second / "aside")
    (second / "manifest.json").symlink_to("manifest.json")  # ELOOP: it cannot be read now
    before = {path: path.lstat().st_mtime_ns for path in run.rglob("*")}
    step = step_of(first) if step_of(first) < STEPS else STEPS
    assert replay(run, "--step", str(step)) == 0
    out = capsys.readouterr().out
    assert f"{second} cannot be used: " in out and "; an older one or the initial weights are taken" in out
    assert out.count("the same bits") == 3
    assert {path: path.lstat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_moved_data_set_is_named_and_another_one_is_refused(
    betons: Path, jpegs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The difference is named in one line."""
    moved = tmp_path / "moved.beton"
    shutil.copy(betons / "train.beton", moved)
    shutil.copy(manifest_path(betons / "train.beton"), manifest_path(moved))
    assert replayed(capsys, run, STEPS, "--data.train", str(moved))["same"]
    assert replay(run, "--step", "2", "--data.train", str(jpegs)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.samples: 512 in the run, 64 now; data.sha256: " in line
    assert line.endswith("give the data set of the run: --data.train PATH")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--step", "7"), "has the steps 1 to 6, but not step 7"),
        (("--step", "0"), "--step 0: steps are counted from 1"),
        (("--step", "five"), "--step must be a whole number, not 'five'"),
        ((), "give the step to replay: --step N"),
        (("--step", "2", "--data.train", "nowhere.beton"), "nowhere.beton does not exist"),
        (("--step", "2", "--config", "nowhere.yaml"), "--config nowhere.yaml does not exist, or is empty"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], reason: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2, and what to do."""
    assert_refused(capsys, trained, reason, *options)


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not exist, or has nothing to start from."""
    assert replay(tmp_path / "nowhere", "--step", "1") == 2
    assert "is not a run folder: it does not exist" in capsys.readouterr().err
    assert replay(tmp_path, "--step", "1") == 2
    assert "is not a run folder: it has neither a ledger, a checkpoint nor config.yaml" in capsys.readouterr().err
    (tmp_path / "ledger.jsonl").write_text('{"time": 1, "event": "submitted", "job": "1"}\n')
    assert replay(tmp_path, "--step", "1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "neither an intact checkpoint nor config.yaml" in line and "--config FILE" in line


@pytest.mark.parametrize("text", ["a: [", "only words", "- a list"])
def test_a_damaged_config_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If there is no checkpoint that has the settings."""
    (tmp_path / "config.yaml").write_text(text)
    assert replay(tmp_path, "--step", "1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the config in {tmp_path}/config.yaml cannot be read: " in line


def test_the_place_of_a_lost_data_set_is_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not how to write it again: it is the one that the run was trained on."""
    (run / "config.yaml").write_text("data: {train: /nowhere/train.beton}\n")
    assert replay(run, "--step", "2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/nowhere/train.beton does not exist, the training set of the run" in line
    assert line.endswith("--data.train FILE")


def test_settings_that_were_changed_on_resuming_hold_from_that_step_on(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps on both sides of the change have the recorded bits, from a checkpoint before it and from the start."""
    run, cfg = tmp_path / "changed", short_config(betons)
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, keep=99))
    train_on(2, run, save_each_step(cfg))
    longer = replace(cfg, epochs=2, optim=replace(cfg.optim, lr=5e-3, weight_decay=0.2))
    train_on(4, run, longer, "--override-resume", "epochs", "optim.lr", "optim.weight_decay")
    before, *_, newest = sorted(path for path in checkpoints(run) if step_of(path) not in (0, STEPS))
    assert step_of(before) < STEPS < step_of(newest)
    for kept in (newest, before):
        aside = [path.rename(tmp_path / path.name) for path in checkpoints(run) if path != kept]
        for step in (STEPS - 1, STEPS, STEPS + 1, 2 * STEPS - 1):
            found = replayed(capsys, run, step)
            assert found["recorded"] and found["same"], (kept, step)
        for path in aside:
            path.rename(run / "checkpoints" / path.name)


def test_image_sizes_that_change_are_those_of_the_step(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `train_sizes`, each step has its image size and its micro-batch."""
    run, cfg = tmp_path / "sizes", replace(small_config(betons), epochs=1, train_sizes=((0.5, 14, 16), (0.5, 28)))
    train_on(4, run, replace(cfg, log=replace(cfg.log, every_steps=1)))
    found = {step: replayed(capsys, run, step) for step in (2, 7)}
    assert all(each["same"] and each["recorded"] for each in found.values())
    assert [len(each["micro_batches"]) for each in found.values()] == [4, 8]
