"""benchmarks/preemption.py on a stand-in for a trainer that saves at SIGUSR1 and repeats half an epoch."""

import sys
from typing import Any

import pytest

from benchmarks.other_trainers.experiment import Experiment
from benchmarks.other_trainers.trainers import EPOCHS, Trainer
from benchmarks.preemption import damage, dead_rank, make_images, not_finite, signals, unwritable

SCRIPT = """
import os, signal, subprocess, sys
from pathlib import Path
import torch
from PIL import Image

data, saved, lr = Path(sys.argv[1]), Path(sys.argv[2]) / "last.pt", float(sys.argv[3])
epoch = torch.load(saved)["epoch"] if saved.exists() else 0


def save(epoch):
    saved.parent.mkdir(exist_ok=True)
    weights = {"w": torch.full((1000, 1000), lr * epoch)}
    torch.save({"epoch": epoch, "weights": weights}, saved)


def save_and_requeue(*_):
    save(epoch)
    subprocess.run(["scontrol", "requeue", "1"])


signal.signal(signal.SIGUSR1, save_and_requeue)
for epoch in range(epoch, 3):
    for path in sorted((data / "train").rglob("*.png")):
        Image.open(path).close()
    print("loss nan" if lr > 1 else "loss 0.1")
    save(epoch + 1)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is found about the stand-in."""
    assert EPOCHS == 3
    folder = tmp_path_factory.mktemp("trainer")
    make_images(folder / "data")
    (folder / "train.py").write_text(SCRIPT)
    trainer = Trainer(
        name="stand-in",
        ranks=1,
        script=folder / "train.py",
        options=("{data}", "{folder}", "{lr}"),
        saved="last.pt",
        weights="weights",
    )
    experiment, found = Experiment(trainer, folder / "data", folder / "runs"), dict[str, Any]()
    signals(experiment, found, ["SIGUSR1"])
    for part in (dead_rank, damage, unwritable, not_finite):
        part(experiment, found)
    return found


def test_it_is_found_what_a_trainer_saves_at_a_signal_and_trains_twice(found: dict[str, Any]) -> None:
    """It handles SIGUSR1, and repeats the epoch from its beginning."""
    assert found["undisturbed"] == {"codes": [0], "twice the same bits": True}
    at_signal = found["SIGUSR1"]
    assert at_signal["requeued"] == ["scontrol requeue 1"]
    assert at_signal["images of the epoch before the signal"] == 24
    assert at_signal["images trained twice in that epoch"] == 24
    assert at_signal["images never trained in that epoch"] == 0
    assert at_signal["same bits as undisturbed"] is True


def test_it_is_found_what_a_trainer_does_with_a_damaged_checkpoint_a_full_disk_and_nan(found: dict[str, Any]) -> None:
    """The stand-in ends with an error, ends with an error, and trains on; torchrun starts it a second time."""
    assert found["dead rank"] == {"under torchrun": True, "codes": [0], "images opened": [52 + 96], "killed at": 52}
    assert found["damaged"]["codes"] == [1]
    assert found["unwritable"]["codes"] == [1]
    assert (found["not finite"]["codes"], found["not finite"]["losses printed as nan"]) == ([0], 3)


def test_without_a_trainer_the_command_says_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line."""
    from benchmarks import preemption

    monkeypatch.setattr(sys, "argv", ["preemption.py"])
    with pytest.raises(SystemExit, match="name at least one of --timm, --torchvision and --lightning"):
        preemption.main()
