"""`submit.py --estimate` on this machine: from real past runs, or from the table; nothing is written."""

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from jobs.estimate.past_runs import read_past_runs
from jobs.estimate.speeds import read_table
from jobs.estimate.wall_time import Basis
from jobs.estimate.work import Work
from jobs.submit import main
from tests.helpers.local_runs import settings
from tests.helpers.paths import CONFIGS, ROOT
from tests.helpers.watched_runs import GPU, write_run
from vit.config.parser import load_config
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.run.folder import RunFolder

DEMO = ["--config", str(CONFIGS / "demo.yaml"), "--cluster", "local", "--estimate"]
CHECKPOINT = "checkpoints/step-00000024"


def estimate(capsys: pytest.CaptureFixture[str], runs: Path, *options: str) -> str:
    """What the command prints, which must succeed and write nothing."""
    before = files(runs)
    code = main([*DEMO, "--runs-dir", str(runs), *options])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), out + err
    assert files(runs) == before
    return out


def files(folder: Path) -> dict[Path, float]:
    """All files below a folder, with the times at which they were changed."""
    return {path: path.lstat().st_mtime for path in folder.rglob("*")}


def rows(out: str) -> dict[str, list[str]]:
    """The rows of the table, by their number of ranks."""
    found = [line.removeprefix(">").split() for line in out.splitlines() if re.match(r"[> ] +\d+ ", line)]
    return {row[0]: row[1:] for row in found}


def test_a_run_like_a_past_one_is_as_fast(
    finished: tuple[RunFolder, str], betons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice its length takes about twice the time in steps; on one rank half as fast, or more if cores are few."""
    run = finished[0]
    out = estimate(capsys, run.path.parent, "--gpus", "2", *settings(betons, epochs=12), "--name", "new")
    assert "12 epochs of 512 images: 96 steps of 64 images; 12 evaluations of 100 images" in out
    assert "as in run demo" in out and "the same computation" in out
    rates = [r["images_per_second"] for r in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in r]
    measured = float(rows(out)["2"][0].replace(",", ""))
    assert min(rates) <= measured <= max(rates)
    assert set(rows(out)) >= {"1", "2"}


def test_the_command_imports_no_torch(betons: Path, tmp_path: Path) -> None:
    """It must answer at once on a login node."""
    words = [*DEMO, "--runs-dir", str(tmp_path), *settings(betons)]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jobs.submit import main; "
    code += f"assert main({words!r}) == 0; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["False"], done.stdout + done.stderr


def test_damaged_and_unreadable_runs_are_left_out_and_named(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate comes from the run that can be read."""
    runs = tmp_path / "runs"
    for name in ("good", "garbage", "no_config", "no_ledger", "sweep/damaged"):
        (runs / name).mkdir(parents=True)
        for file in ("config.yaml", "ledger.jsonl", "metrics.jsonl"):
            shutil.copy(finished[0].path / file, runs / name)
    for file in ("config.yaml", "ledger.jsonl", "metrics.jsonl"):
        (runs / "garbage" / file).write_bytes(bytes(range(256)) * 9)
    (runs / "no_config" / "config.yaml").unlink()
    (runs / "no_ledger" / "ledger.jsonl").unlink()
    (runs / "no_ledger" / "ledger.jsonl").mkdir()  # cannot be read: root may read any file
    (runs / "sweep" / "damaged" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "images_per_second": -1}\n' * 9)
    out = estimate(capsys, runs, "--gpus", "2", *settings(betons), "--name", "new")
    assert "as in run good" in out
    left_out = [line for line in out.splitlines() if line.startswith("left out")]
    assert len(left_out) == 3, out
    for name in ("garbage/config.yaml is damaged", "no_config/config.yaml is damaged or missing", "no_ledger"):
        assert any(name in line for line in left_out), left_out


def test_a_run_with_any_damage_is_read_or_named(finished: tuple[RunFolder, str], tmp_path: Path) -> None:
    """Bytes, numbers and words of its files are replaced at random; what is read gives an estimate."""
    random, run, cfg = Random(0), tmp_path / "run", load_config(finished[0].config)
    run.mkdir()
    names, read = ("config.yaml", "ledger.jsonl", "metrics.jsonl"), 0
    contents = {name: (finished[0].path / name).read_bytes() for name in names}
    values = [b"null", b"-1", b"0", b"1e999", b'"x"', b"[]", b"{}", b"true", b"\xff", b"NaN", b"12345678901234567890"]
    for _ in range(150):
        for name, whole in contents.items():
            content = whole
            found = list(re.finditer(rb"(?<=: )[^,}\n]+", content))
            for match in random.sample(found, k=random.choice((0, 1, len(found) // 3))):
                content = content.replace(match[0], random.choice(values), 1)
            (run / name).write_bytes(content)
        past = read_past_runs(tmp_path, 60)
        assert len(past.runs) + len(past.skipped) <= 1
        read += len(past.speeds) > 0
        basis = Basis(past=past, table=read_table())
        estimate = basis.estimate(Work(cfg, 512, 100), 1, 2, "cpu")
        assert estimate is not None and 0 < estimate.wall < math.inf
    assert read > 20, "the damage is not always fatal"


def test_without_past_runs_the_table_is_used_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Data sets need not be written: ImageNet's size is assumed, and said."""
    config = ["--config", str(CONFIGS / "vit_b16.yaml"), "--cluster", "local", "--device", "cuda", "--estimate"]
    assert main([*config, "--gpus", "4", "--runs-dir", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    assert err == "" and not (tmp_path / "runs").exists()
    assert "300 epochs of 1,281,167 images" in out
    assert "train.beton is not written yet: 1,281,167 images are assumed" in out
    assert "measured for vit_b16 on NVIDIA H200 (benchmarks/results/gpu.json), the same computation" in out
    assert rows(out)["1"][0] == "3,345" and rows(out)["4"][0] == "13,380"
    assert "4 checkpoints of 1.0 GB" in out


def test_another_model_is_scaled_by_its_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a past run on the same kind of GPU, which comes before the table."""
    small = Config(epochs=10, global_batch=1024, micro_batch=128, precision="bf16", compile=True)
    write_run(tmp_path / "past", cfg=replace(small, model=ModelConfig(width=384, heads=6, mlp_dim=1536)), old=True)
    config = ["--config", str(CONFIGS / "vit_b16.yaml"), "--cluster", "local", "--device", "cuda", "--estimate"]
    assert main([*config, "--runs-dir", str(tmp_path), "--optim.ema_decay", "0"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("speed"))
    assert f"as in run past on {GPU}" in line and "another model, 3.8 times the operations per image" in line
    assert rows(out)["1"][0] == "168", "640 images/s on each of four GPUs, over 3.82"


def test_a_resumed_run_is_estimated_from_its_newest_checkpoint(
    finished: tuple[RunFolder, str], betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the steps take half of the time; a complete run has nothing left, and --extend adds to it."""
    runs = tmp_path / "runs"
    shutil.copytree(finished[0].path, runs / "demo", ignore=shutil.ignore_patterns("checkpoints"))
    assert "nothing is left to do" not in estimate(capsys, runs, *settings(betons), "--name", "new")
    (runs / "demo" / CHECKPOINT).mkdir(parents=True)
    out = estimate(capsys, runs, *settings(betons))
    assert "48 steps of 64 images, of which 24 are left after step 24; 3 evaluations" in out
    (runs / "demo" / "checkpoints" / "step-00000048").mkdir()
    assert "nothing is left to do" in estimate(capsys, runs, *settings(betons))
    out = estimate(capsys, runs, *settings(betons), "--extend", "9")
    assert "72 steps of 64 images, of which 24 are left after step 48; 3 evaluations" in out


def test_several_image_sizes_are_estimated_each(
    finished: tuple[RunFolder, str], betons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The half of the run with 14 pixels has a quarter of the patches."""
    runs, sizes = finished[0].path.parent, ("--train_sizes", "[[0.5,14],[0.5,28]]", "--name", "new")
    out = estimate(capsys, runs, "--gpus", "2", *settings(betons), *sizes)
    speeds = [line for line in out.splitlines() if line.startswith("speed")]
    assert len(speeds) == 2 and "at 14 pixels" in speeds[0] and "at 28 pixels" in speeds[1]
    assert "28 pixels, 0.2" in speeds[0] and "the same computation" in speeds[1]


def test_a_sweep_is_estimated_as_a_whole(
    finished: tuple[RunFolder, str], betons: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On this machine one run after the other."""
    runs = finished[0].path.parent
    one = estimate(capsys, runs, "--gpus", "2", *settings(betons, 60), "--name", "new")
    out = estimate(capsys, runs, "--gpus", "2", *settings(betons, 60), "--name", "new", "--sweep", "seed=0,1,2")
    assert "3 runs: 1,440 steps, 92,160 images" in out
    assert float(rows(out)["2"][-1]) == pytest.approx(3 * float(rows(one)["2"][-1]), abs=0.02)
    assert "for 3 runs" in out


def test_an_estimate_needs_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    """It is about a training run."""
    assert main(["--prep", str(CONFIGS / "imagenet.yaml"), "--estimate", "--cluster", "local"]) == 2
    assert "--estimate requires --config FILE" in capsys.readouterr().err


def test_a_submission_stores_its_estimate_before_the_run_starts(finished: tuple[RunFolder, str]) -> None:
    """Also on this machine."""
    events = finished[0].events()
    assert [event["event"] for event in events[:2]] == ["estimated", "supervising"]
    assert events[0] | {"step": 0, "steps": 48, "images": 48 * 64, "nodes": 1, "gpus": 2, "device": "cpu"} == events[0]
    assert events[0]["images_per_second"] > 0 and events[0]["seconds"]["step"] > 0
    assert "vit_ti16" in events[0]["source"] and "times the operations per image" in events[0]["source"]
