"""`python -m vit.replay RUN --around N` draws the losses of the samples of some steps, and names those in spikes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.data_sets import WRITE, small_config
from tests.helpers.interrupted_runs import STEPS
from tests.helpers.replayed_runs import assert_refused, contents, replay, train_on
from vit.replay.around_figure import draw_window
from vit.replay.spikes import StepLosses, curve_spikes, repeated_samples, window_spikes

SAMPLES, BATCH, EPOCHS = 128, 16, 12
PLANTED = 77  # the sample whose label is wrong
OF_EPOCH = SAMPLES // BATCH  # steps
TOTAL = EPOCHS * OF_EPOCH


@pytest.fixture(scope="module")
def mislabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images whose color is their class, except for one."""
    folder = tmp_path_factory.mktemp("mislabeled")
    random = np.random.default_rng(0)
    for i in range(SAMPLES):
        color = np.full(3, 40 if i % 2 else 215) + random.normal(0, 8, (40, 40, 3))
        label = i % 2 if i != PLANTED else 7
        path = folder / "images" / f"class-{label}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(path)
    arguments = ["imagefolder", str(folder / "images"), "--out", str(folder / "train.beton"), "--workers", "1"]
    subprocess.run([sys.executable, "-c", WRITE], input=json.dumps([arguments]), text=True, check=True)
    cfg = small_config(folder / "train.beton")
    cfg = replace(
        cfg,
        epochs=EPOCHS,
        global_batch=BATCH,
        micro_batch=4,
        model=replace(cfg.model, num_classes=3),
        optim=replace(cfg.optim, lr=3e-3),
        log=replace(cfg.log, every_steps=1),
    )
    train_on(1, folder / "run", cfg)
    return folder / "run"


def test_a_mislabeled_sample_is_named(mislabeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is in one spike of each epoch: in several of the window, and in those of the whole run."""
    before, out = contents(mislabeled), tmp_path / "new" / "around.png"
    options = ("--around", str(TOTAL - 16), "--steps", "16")
    assert replay(mislabeled, *options, "--json", "--out", str(out)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in found["steps"]] == list(range(TOTAL - 32, TOTAL + 1))
    assert all(each["loss"] == each["recorded"] for each in found["steps"])
    highest = max((row for each in found["steps"] for row in each["samples"]), key=lambda row: row["loss"])
    planted, steps = highest["sample"], found["in_several"][str(highest["sample"])]
    assert highest["class"] == "class-7"
    assert len(steps) >= 4 and next(iter(found["in_several"])) == str(planted)
    (of_run,) = found["run"]["samples"]
    assert of_run["sample"] == planted and len(of_run["steps"]) >= 4 and set(steps) <= set(found["run"]["spikes"])
    with Image.open(out) as picture:
        assert picture.width > 700
        assert len(picture.getcolors(2**24) or []) > 50
    assert contents(mislabeled) == before

    assert replay(mislabeled, *options, "--out", str(out)) == 0
    text = capsys.readouterr().out
    name = f"sample {planted} (class class-7)"
    assert f"{name}: steps {', '.join(map(str, steps))}, {len(steps)} of the " in text
    assert f"  {name}: in {len(of_run['steps'])} of {len(found['run']['spikes'])}, at steps" in text
    assert text.rstrip().endswith(f"the loss of each sample: {out}")


def test_mixed_images_have_both_samples(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The window ends where the run does; each step has the bits of the run."""
    assert replay(trained, "--around", str(STEPS), "--json", "--out", str(tmp_path / "a.png")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in found["steps"]] == list(range(1, STEPS + 1))
    assert all(each["loss"] == each["recorded"] for each in found["steps"])
    rows = [row for each in found["steps"] for row in each["samples"]]
    assert any("mixed_with" in row and row["mixed_with"] != row["sample"] for row in rows)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--around", "99"), "has the steps 1 to 6, but not step 99"),
        (("--around", "8"), "has the steps 1 to 6, but not step 8"),
        (("--around", "0"), "--around 0: steps are counted from 1"),
        (("--around", "3", "--steps", "-1"), "--steps -1 must be at least 0"),
        (("--around", "3", "--step", "3"), "--around does not go with --step"),
        (("--around", "3", "--out", "curve.svg"), "--out curve.svg: the name of the picture must end with .png"),
        (("--step", "3", "--steps", "2"), "--steps belongs to --around N"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], reason: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2, and what to do."""
    assert_refused(capsys, trained, reason, *options)


def step_losses(step: int, losses: list[float]) -> StepLosses:
    """A step whose samples are numbered from ten times its number on."""
    n, values = len(losses), np.array(losses)
    none = np.full(n, -1)
    return StepLosses(step, False, float(values.mean()), None, 10 * step + np.arange(n), none, np.zeros(n), values)


def test_losses_that_are_not_finite_are_spikes_at_the_top_edge() -> None:
    """The picture has them too, also if nothing else is in it."""
    steps = [step_losses(1, [1.0, 2.0, 1.5]), step_losses(2, [1.0, float("nan"), float("inf")])]
    spikes = window_spikes(steps, 1.5, 2.0)
    assert [(spike.of.step, spike.samples) for spike in spikes] == [(2, {21, 22})]
    plain = draw_window(steps[:1], [], 2.0, 1, "a run")
    marked = draw_window(steps, spikes, 2.0, 2, "a run with $ _ and \x1b in its name")
    assert plain.size == marked.size and plain.tobytes() != marked.tobytes()
    assert draw_window([step_losses(1, [1e-3, 1e-3, 1.0] + [1e-3] * 997)], [], None, 1, "logarithmic").width > 700
    draw_window([step_losses(2, [float("nan")])], [], None, 2, "nothing is finite")


def test_spikes_of_a_curve_are_those_above_their_neighbors() -> None:
    """Neither the noise nor the start, where the loss falls, is a spike."""
    random = np.random.default_rng(0)
    curve = {step: 2 + 5 * np.exp(-step / 100) + random.normal(0, 0.05) for step in range(1, 1001)}
    assert curve_spikes(curve) == []
    for step in (3, 500, 501, 1000):
        curve[step] += 2
    assert curve_spikes(curve) == [3, 500, 501, 1000]
    assert curve_spikes({1: 1.0, 2: 9.0}) == []


def test_samples_are_named_only_if_chance_does_not_explain_them() -> None:
    """Spikes at random steps name nobody; one sample in all of them is named."""
    random = np.random.default_rng(1)
    spikes = {}
    for number in range(12):
        members = random.permutation(10_000)[:100]
        spikes[100 * number] = members, np.full(100, number)
    assert repeated_samples(spikes, 10_000) == []
    for members, _ in spikes.values():
        members[0] = 4242
    (found,) = repeated_samples(spikes, 10_000)
    assert (found.sample, len(found.steps)) == (4242, 12) and found.expected < 1e-9


def test_image_sizes_and_repeats_are_those_of_the_steps(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `train_sizes` and repeated augmentation, the window across a change of the size has the bits of the run."""
    run, cfg = tmp_path / "sizes", replace(small_config(betons), epochs=1, train_sizes=((0.5, 14, 16), (0.5, 28)))
    cfg = replace(cfg, data=replace(cfg.data, repeats=2), log=replace(cfg.log, every_steps=1))
    train_on(1, run, cfg)
    assert replay(run, "--around", "4", "--steps", "3", "--json", "--out", str(tmp_path / "a.png")) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["steps"]) == 7 and all(each["loss"] == each["recorded"] for each in found["steps"])
