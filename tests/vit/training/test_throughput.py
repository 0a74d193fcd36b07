"""The speed of a run: images per second, the time that it still needs, and the share of the GPUs' peak."""

import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tests.helpers.interrupted_runs import learning_curve, new_run_folder, run_attempt, short_config
from tests.helpers.ranks import run_ranks
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.history.utilization import training_flops_per_image
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.training.compiling import CompilePlan
from vit.training.throughput import Throughput

CFG = Config(global_batch=64, micro_batch=64, precision="bf16")


# 100 steps at a quarter of the pixels, then 100 steps at 224 pixels, which take four times as long.
GROWING = RunSchedule(replace(CFG, epochs=2, train_sizes=((0.5, 112), (0.5, 224))), samples=6400).stages
CONSTANT = RunSchedule(replace(CFG, epochs=2), samples=3840).stages  # 120 steps


def after(monkeypatch: pytest.MonkeyPatch, seconds: float, throughput: Throughput, step: int) -> dict[str, float]:
    """What is measured at a step, so many seconds after the last measurement."""
    monkeypatch.setattr(time, "perf_counter", lambda: throughput._time + seconds)
    return throughput.measure(step)


def test_pauses_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for evaluations and checkpoints is excluded.  The time left is that of the remaining steps."""
    throughput = Throughput(CONSTANT, 1, "cpu", 10)
    monkeypatch.setattr(time, "perf_counter", lambda now=throughput._time: now + 20)
    throughput.exclude(15)
    assert throughput.measure(20) == {"images_per_second": 128.0, "seconds_left": 50.0}


def test_the_time_left_counts_the_pixels_of_larger_images_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its steps, a run would seem to be over much too soon while its images are small."""
    throughput = Throughput(GROWING, 1, "cpu", 0)
    assert after(monkeypatch, 5.0, throughput, 50)["seconds_left"] == 5 + 40
    assert after(monkeypatch, 5.0, throughput, 100) == {"images_per_second": 640.0, "seconds_left": 40.0}
    assert after(monkeypatch, 20.0, throughput, 150) == {"images_per_second": 160.0, "seconds_left": 20.0}
    assert after(monkeypatch, 20.0, throughput, 200)["seconds_left"] == 0


def test_the_time_left_is_right_when_the_measured_steps_are_of_two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 small and 10 large steps take 5 s at one rate of pixels."""
    throughput = Throughput(GROWING, 1, "cpu", 90)
    assert after(monkeypatch, 5.0, throughput, 110) == {"images_per_second": 256.0, "seconds_left": 36.0}


def test_the_utilization_follows_the_size_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two H100s, whose peak is known by their name: FLOPs of the images of each size, over the time."""
    small, large = (64 * training_flops_per_image(ModelConfig(image_size=side)) for side in (112, 224))
    throughput = Throughput(GROWING, 2, "NVIDIA H100 80GB HBM3", 0)
    peak = 2 * 989e12
    assert after(monkeypatch, 0.5, throughput, 50)["mfu"] == pytest.approx(50 * small / 0.5 / peak, abs=5e-5)
    assert after(monkeypatch, 2.0, throughput, 110)["mfu"] == pytest.approx(
        (50 * small + 10 * large) / 2 / peak, abs=5e-5
    )


def train_as_on(name: str, cfg: Config, run: Path) -> str:
    """Trains on this machine's CPU as if that were its name."""
    with mock.patch("vit.training.trainer.device_name", return_value=name):
        return run_attempt(cfg, run)


def test_a_record_of_training_has_the_utilization_of_a_gpu_that_is_known(betons: Path, tmp_path: Path) -> None:
    """It differs between two otherwise identical runs; a device that is not known, such as a CPU, has none."""
    curves = []
    for name in ("NVIDIA H100 80GB HBM3", "cpu"):
        run = new_run_folder(tmp_path / name)
        assert run_ranks(1, train_as_on, name, short_config(betons), run) == ["finished"]
        records = [record for record in read_lines(RunFolder(run).metrics) if "loss" in record]
        assert all(("mfu" in record) == (name != "cpu") for record in records)
        curves.append(learning_curve(run))
    assert curves[0] == curves[1]


def train_after_compiling(cfg: Config, run: Path) -> str:
    """Trains after a day of compiling."""
    days = 0

    def carry_out(*_: object) -> bool:
        nonlocal days
        days += 1
        return True

    clock, now = mock.Mock(), time.perf_counter
    clock.perf_counter = lambda: now() + 86_400 * days
    with mock.patch.object(CompilePlan, "carry_out", carry_out), mock.patch("vit.training.throughput.time", clock):
        return run_attempt(cfg, run)


def test_compiling_before_the_first_step_does_not_count(betons: Path, tmp_path: Path) -> None:
    """Else the first record would say that the run takes for weeks."""
    run = new_run_folder(tmp_path / "run")
    assert run_ranks(1, train_after_compiling, short_config(betons), run) == ["finished"]
    first = next(record for record in read_lines(RunFolder(run).metrics) if "loss" in record)
    assert first["images_per_second"] > 1 and first["seconds_left"] < 3600
