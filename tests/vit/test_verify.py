"""vit.verify reports "identical" only if all results are, and names each difference otherwise."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.data_sets import small_config
from tests.helpers.paths import CHECKOUT
from vit.config.schema import to_yaml
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.verify import Artifact, artifacts, first_difference, main, passes_are_complete, slowdown

STEPS = 12


def verify(betons: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command on a small model."""
    cfg = small_config(betons)
    cfg = replace(
        cfg,
        model=replace(cfg.model, dropout=0.1, drop_path=0.1),
        augment=replace(cfg.augment, randaugment_ops=1, mixup=0.2),
    )
    folder.mkdir()
    (folder / "small.yaml").write_text(to_yaml(cfg))
    command = [sys.executable, "-m", "vit.verify", "--config", str(folder / "small.yaml"), "--steps", str(STEPS)]
    command += ["--folder", str(folder / "runs"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=CHECKOUT)


@pytest.fixture(scope="module")
def killed(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A run that was killed three times, on 4, 2 and 1 ranks: the completed command, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("verify") / "killed"
    return verify(betons, folder, "--kills", "3", "--ranks", "4,2,1"), folder / "runs"


def test_a_run_killed_on_4_2_and_1_ranks_is_identical(killed: Any) -> None:
    """The command prints a row for each kill and for each compared result, and exits with code 0."""
    done, runs = killed
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(
        r"^ +(\d) +[\d.]+ s +\d+ +(\d) +\d+  (rank \d|all ranks|the launcher|everything)$", done.stdout, re.M
    )
    assert [(n, ranks) for n, ranks, _ in rows] == [("1", "4"), ("2", "2"), ("3", "1")]
    same = re.findall(r"^(\S.*?)  +\S.*?  +([0-9a-f]{8})  +\2  +same$", done.stdout, re.M)
    assert [what for what, _ in same] == [
        *("weights", "moments", "EMA of weights", "gradient scaler", "learning curve", "sample ids"),
    ]
    assert re.search(r"^identical after 3 kills, in \d+ s$", done.stdout, re.M)
    starts = [e["ranks"] for e in RunFolder(runs / "killed").events() if e["event"] == "started"]
    assert starts[-1] == 4  # the fourth attempt runs on four ranks again


def test_every_kind_of_difference_is_reported(killed: Any) -> None:
    """One bit of a weight, a duplicate record, a missing record, samples in another order."""
    run = RunFolder(killed[1] / "straight")
    by_name = {artifact.name: artifact for artifact in artifacts(run)}
    for artifact in by_name.values():
        same = Artifact(artifact.name, artifact.size, dict(artifact.values))
        assert first_difference(artifact, same) is None
        assert artifact.digest == same.digest

    def difference(name: str, **changes: Any) -> str:
        artifact = by_name[name]
        values = {key: v for key, v in {**artifact.values, **changes}.items() if v is not None}
        other = Artifact(name, artifact.size, values)
        assert other.digest != artifact.digest
        return first_difference(artifact, other) or "none"

    name, weight = next((n, t) for n, t in by_name["weights"].values.items() if t.ndim == 2)
    flipped = weight.clone()
    flipped.view(torch.int32)[1, 2] ^= 1
    place = f"1 of {weight.numel():,} values differ; the first, at {weight.shape[1] + 2:,}, is "
    assert difference("weights", **{name: flipped}).startswith(f"{name}: {place}")
    zero = Artifact("weights", "", {"bias": torch.tensor([1.0, 0.0])})
    assert first_difference(zero, Artifact("weights", "", {"bias": torch.tensor([1.0, -0.0])})) == (
        "bias: 1 of 2 values differ; the first, at 1, is 0.0 and -0.0"
    )

    record = by_name["learning curve"].values["step 3"]
    assert (
        difference("learning curve", **{"step 3": {**record, "loss": 0.5}})
        == f"step 3: loss is {record['loss']} and 0.5"
    )
    assert difference("learning curve", **{"step 3, again": record}) == "step 3, again is only in the killed run"
    assert difference("learning curve", **{"step 3": None}) == "step 3 is only in the undisturbed run"
    used = by_name["sample ids"].values["step 2, micro-batch 5"]
    assert difference("sample ids", **{"step 2, micro-batch 5": {**used, "samples": used["samples"][::-1]}}).startswith(
        "step 2, micro-batch 5: samples is "
    )


def samples_of(run: RunFolder) -> int:
    """The number of images that a run used."""
    return 1 + max(i for line in read_lines(run.samples) for i in line["samples"])


def with_other_samples(run: RunFolder, folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> RunFolder:
    """A run with a changed record of the samples of its steps."""
    lines, other = read_lines(run.samples), RunFolder(folder)
    change(lines)
    other.samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return other


def test_a_sample_that_is_missing_or_used_twice_is_detected(killed: Any, tmp_path: Path) -> None:
    """Each completed pass must have each image exactly once, independently of the other run."""
    run = RunFolder(killed[1] / "straight")
    assert passes_are_complete(run, samples_of(run))

    def use_twice(lines: list[dict[str, Any]]) -> None:
        lines[3]["samples"][0] = lines[3]["samples"][1]

    assert not passes_are_complete(with_other_samples(run, tmp_path, use_twice), samples_of(run))


def test_a_run_with_repeated_augmentation_is_identical(betons: Path, tmp_path: Path) -> None:
    """Each pass has each image exactly three times, in a row; once more or less, or elsewhere, is detected."""
    done = verify(betons, tmp_path / "verify", "--kills", "1", "--ranks", "2,1", "--data.repeats", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "verify" / "runs" / "straight")
    samples = samples_of(run)
    assert re.search(rf"^complete passes +each of {samples} samples 3 times +yes +yes +$", done.stdout, re.M)

    def use_four_times(lines: list[dict[str, Any]]) -> None:
        lines[0]["samples"][1] = lines[0]["samples"][0]

    def exchange(lines: list[dict[str, Any]]) -> None:
        first = lines[0]["samples"]
        first[0], first[1] = first[1], first[0]

    for change in (use_four_times, exchange):
        assert not passes_are_complete(with_other_samples(run, tmp_path, change), samples, 3)


def test_without_exact_bits_the_differences_are_reported(betons: Path, tmp_path: Path) -> None:
    """With DDP's own gradient sum, another number of ranks gives the same samples but other weights: exit code 1."""
    done = verify(betons, tmp_path / "runs", "--kills", "2", "--ranks", "4,2", "--exact", "samples")
    assert done.returncode == 1, done.stdout + done.stderr
    verdicts = dict(re.findall(r"^(\S.*?)  +\S.*  (same|differ)$", done.stdout, re.M))
    assert (verdicts["weights"], verdicts["sample ids"]) == ("differ", "same")
    place = r"[\d,]+ of [\d,]+ values differ; the first, at [\d,]+, is \S+ and \S+"
    assert re.search(rf"^  weights: \S+: {place}$", done.stdout, re.M)
    assert "identical, " not in done.stdout
    assert "NOT identical" in done.stderr


def test_the_slowdown_by_exact_bits_is_a_ratio_of_medians(tmp_path: Path) -> None:
    """The first steps, which initialize everything, and single slow steps do not count."""
    for name, throughputs in (("bits", [1.0] * 5 + [90.0] * 9 + [1.0]), ("samples", [500.0] * 5 + [99.0] * 9 + [3.0])):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": i, "loss": 1, "images_per_second": value}) for i, value in enumerate(throughputs)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    assert slowdown(RunFolder(tmp_path / "bits"), RunFolder(tmp_path / "samples")) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "4;2"], "--ranks '4;2' must be numbers separated by commas, e.g. 4,2,1"),
        (["--ranks", "4,3"], "3 ranks do not divide the 8 micro-batches of a batch"),
        (["--ranks", "0"], "--ranks '0' must be numbers separated by commas, e.g. 4,2,1"),
        (["--steps", "0"], "--steps 0 is too few; use at least 1"),
        (["--steps", "5", "--cost"], "--steps 5 is too few; use at least 6 with --cost"),
        (["--kills", "-1"], "--kills -1 must not be negative"),
        (["--folder", "/dev/null"], "/dev/null: Not a directory; a part of the path is a file, not a folder"),
        (["--data.train", "none.beton"], "-m data_prep.write_beton imagefolder FOLDER --out none.beton creates it"),
    ],
)
def test_invalid_input_is_reported_in_one_line(
    options: list[str], message: str, betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training starts, with exit code 2."""
    (tmp_path / "small.yaml").write_text(to_yaml(small_config(betons)))
    with pytest.raises(SystemExit) as exited:
        main(["--config", str(tmp_path / "small.yaml"), *options])
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_ranks_that_fail_without_a_kill_end_the_command(betons: Path, tmp_path: Path) -> None:
    """The command prints the end of their log."""
    done = verify(betons, tmp_path / "runs", "--kills", "1", "--ranks", "1", "--optim.lr", "1e30")
    assert done.returncode == 1
    assert "1 ranks exited with code 2 without having been killed" in done.stderr
    assert "optim.max_skipped allows 10; a lower optim.lr may help" in done.stderr


def test_an_attempt_lasts_until_the_last_thread_of_its_last_process_ends() -> None:
    """A process whose main thread has ended is a zombie, but its other threads still hold its files and locks."""
    program = """
import ctypes, os, signal, threading
from vit.kill_attempts import _descendants
child = os.fork()
if child == 0:
    threading.Thread(target=threading.Event().wait).start()
    ctypes.CDLL(None).pthread_exit(None)
while open(f"/proc/{child}/stat").read().rpartition(") ")[2][0] != "Z":
    pass
assert [process.pid for process in _descendants()] == [child]
os.kill(child, signal.SIGKILL)
while _descendants():
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
