"""Jobs that prepare data sets: on this machine, and on a real Slurm cluster, where they may be killed at any time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from data_prep.options import parse_arguments
from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from jobs.login.prep_config import load_prep
from tests.cluster.test_preemption_modes import canceling_partition
from tests.helpers.cluster_case import Case, campaign
from tests.helpers.local_runs import SUBMIT
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder

TRAIN_ALONE = "train: {{source: imagefolder, path: {0}, out: {1}/train.beton{2}}}\n"


def small_config(tmp_path: Path, images: Path) -> Path:
    """A config file with one data set, from a folder of images."""
    file = tmp_path / "small.yaml"
    file.write_text(TRAIN_ALONE.format(images, tmp_path / "data", ", seed: 3"))
    return file


@pytest.fixture
def images(jpegs: Path) -> Path:
    """A folder of images, one subfolder per class."""
    return jpegs.parent / "images"


def test_the_config_for_imagenet_runs_the_commands_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the tar files in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        Path(name).touch()
    prep = load_prep(ROOT / "configs" / "imagenet.yaml")
    assert [one.out for one in prep.pending] == [
        tmp_path / f"data/imagenet/{split}.beton" for split in ("train", "val")
    ]
    readme = (ROOT / "data_prep/README.md").read_text()
    for one in prep.data_sets:
        kind, tar, *_ = one.arguments
        assert f"data_prep.write_beton {kind} {tar} " in readme


def test_without_slurm_a_data_set_is_written_on_this_machine_once(images: Path, tmp_path: Path) -> None:
    """The same command again finds it and writes nothing."""
    command = [*SUBMIT[:2], "--prep", str(small_config(tmp_path, images)), "--cluster", "local"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert first.stdout.count("wrote ") == 1
    assert json.loads((tmp_path / "data" / "train.beton.json").read_text())["seed"] == 3
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout == "all data sets exist: data/train.beton\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "expected `train:` and `val:`, each with options of data_prep.write_beton below it"),
        ("job: {time: 60}", "no data sets; see configs/imagenet.yaml"),
        ("train: {source: imagefolder, path: HERE}", "train: out is required"),
        ("train: {source: ilsvcr, path: HERE, out: a}", "not 'ilsvcr'; did you mean 'ilsvrc'?"),
        (
            "train: {source: imagefolder, path: HERE, out: a, qualty: 9}",
            "unknown option qualty; did you mean 'quality'?",
        ),
        ("train: {source: imagefolder, path: HERE, out: a, quality: 900}", "train: quality must be 1 to 100, not 900"),
        ("train: {source: imagefolder, path: HERE, out: [a, b]}", "train: out must be a single value, not ['a', 'b']"),
        ("train: {source: [a], path: HERE, out: a}", "train: source must be a single value, not ['a']"),
        ("train: {source: imagefolder, path: HERE, out: a, seed: {a: b}}", "train: seed must be a single value, not"),
        ("train: {source: imagefolder, path: HERE, out: a, help: true}", "train: `help` is not an option"),
        ("train: {source: imagefolder, path: HERE, out: $UNSET_7/a}", "train: out: $UNSET_7/a: the variable UNSET_7"),
        ("train: {source: imagefolder, path: nowhere, out: a}", "train: nowhere does not exist"),
        (
            "train: {source: parquet, path: 'HERE/x-*.parquet', out: a}",
            "x-*.parquet: no such file; give .parquet files",
        ),
        ("train: {source: webdataset, path: 'HERE/x-{0..9}.tar', out: a}", "x-0.tar: no such file"),
        (
            "train: {source: webdataset, path: HERE, classes: nowhere, out: a}",
            "nowhere does not exist; correct `classes`",
        ),
        ("train: {source: imagefolder, path: HERE, out: a}\njob: {partitoin: cpu}", "job: unknown key 'partitoin'"),
        (
            "train: {source: imagefolder, path: HERE, out: a}\njob: {cpus_per_task: 0}",
            "must be a positive whole number",
        ),
        ("a: [", "bad.yaml, line 1: a bracket that is not closed"),
    ],
)
def test_an_invalid_config_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    """The message names the file and the data set."""
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace("HERE", str(tmp_path)))
    with pytest.raises(ValueError, match=r"bad\.yaml(, line 1)?: ") as caught:
        load_prep(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_published_data_set_can_be_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns of files may contain variables; a data set that may be downloaded need not be there yet."""
    monkeypatch.setenv("DATA_7", str(tmp_path))
    for name in ("t-00.parquet", "t-01.parquet", "s-0.tar", "s-1.tar"):
        (tmp_path / name).touch()
    file = tmp_path / "all.yaml"
    file.write_text(
        "a: {source: oxford-pets, split: train, root: nowhere, target: species, out: a}\n"
        "b: {source: cifar100, split: val, target: coarse, shuffle: false, out: b}\n"
        "c: {source: parquet, path: '$DATA_7/t-*.parquet', label_column: x, shuffle: true, out: c}\n"
        "d: {source: webdataset, path: '$DATA_7/s-{0..1}.tar', out: d}\n"
    )
    parsed = [parse_arguments(data_set.arguments) for data_set in load_prep(file).data_sets]
    assert [args.recipe.source for args in parsed] == [
        "oxford-pets train, species",
        "cifar100 val, coarse",
        f"parquet {tmp_path}/t-*.parquet, label_column x",
        f"webdataset {tmp_path}/s-{{0..1}}.tar",
    ]
    assert [args.recipe.shuffle for args in parsed] == [True, False, True, True]


def test_a_data_set_that_exists_with_other_options_is_refused(images: Path, jpegs: Path, tmp_path: Path) -> None:
    """It is not used for training instead."""
    file = tmp_path / "other.yaml"
    file.write_text(f"train: {{source: imagefolder, path: {images}, out: {jpegs}, quality: 50}}\n")
    with pytest.raises(ValueError, match=r"other\.yaml: train: .* already exists with quality 90, not 50"):
        load_prep(file)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What the test enters is left at its end."""
    with ExitStack() as stack:
        yield stack


def writers(out: Path) -> list[psutil.Process]:
    """The processes that write this file."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "data_prep.write_beton" in process.cmdline() and str(out) in process.cmdline():
                found.append(process)
    return found


@campaign
@pytest.mark.parametrize("fault", ["requeue", "usr2", "kill", "preempt"])
@pytest.mark.skipif(not PACKAGED_FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not installed")
def test_one_command_prepares_and_trains_even_if_the_preparation_is_interrupted(
    fault: str,
    betons: Path,
    case: Case,
    stack: ExitStack,
) -> None:
    """The preparation is stopped or killed, and resumes; the training waits for it, then runs to its end.

    If it was preempted with PreemptMode=CANCEL, Slurm 24.05 and later call it PREEMPTED although it completes.
    """
    data, file = case.run.path.parents[1] / "data", case.run.path.parents[1] / "prep.yaml"
    one = "{split}: {{source: fashion-mnist, split: {split}, limit: {limit}, mode: raw, out: {data}/{split}.beton}}\n"
    partition = (
        stack.enter_context(canceling_partition(case.slurm, 20, user_signal=True)) if fault == "preempt" else "low"
    )
    job = f"job: {{cpus_per_task: 2, time: 30, partition: {partition}}}\n"
    sets = [one.format(split=split, limit=limit, data=data) for split, limit in (("train", 60_000), ("val", 100))]
    file.write_text("".join(sets) + job)
    paths = ("--data.train", str(data / "train.beton"), "--data.val", str(data / "val.beton"), "--data.limit", "512")
    done = case.submit("--prep", str(file), *paths)
    assert done.returncode == 0, done.stderr
    prep = RunFolder(case.run.path.parent / "prep-prep")
    submitted = prep.last("submitted")
    assert submitted is not None
    number = submitted["job"]
    assert case.slurm.job(case.job)["Dependency"] == f"afterok:{number}(unfulfilled)"
    again = case.submit("--prep", str(file), *paths)
    assert again.returncode == 1
    assert "prep-prep is already in the queue" in again.stdout
    assert "run is already in the queue" in again.stderr
    journal = data / ".train.beton.tmp"
    wait_for(lambda: journal.exists() and journal.stat().st_size > 10**6, "the file", 180)
    if fault == "requeue":
        case.slurm.call("scontrol", "requeue", number)
    elif fault == "usr2":
        case.slurm.call("scancel", "--signal", "USR2", number)
    elif fault == "preempt":
        case.preempt()
    else:
        writers(data / "train.beton")[0].parent().kill()  # type: ignore[union-attr]
    wait_for(lambda: len([e for e in prep.events() if e["event"] == "supervising"]) == 2, "the second start", 120)
    assert case.slurm.state(case.job) == "PENDING"
    wait_for(prep.finished, "the end of the preparation", 300)
    case.wait_until(case.run.finished, "the end of the run", 300)
    assert case.slurm.job(number)["Restarts"] == "1"
    assert f"job {case.job} need not wait for this one any more" in "".join(
        file.read_text() for file in prep.jobs.glob("*.out")
    )


@campaign
def test_if_the_preparation_fails_the_training_is_canceled(case: Case, images: Path, tmp_path: Path) -> None:
    """A broken image ends it; Slurm then cancels the training, and status.py says why."""
    broken = tmp_path / "broken" / "class"
    broken.mkdir(parents=True)
    (broken / "a.png").write_bytes(b"no image")
    file = tmp_path / "small.yaml"
    file.write_text(
        TRAIN_ALONE.format(broken.parent, tmp_path / "data", "") + "job: {cpus_per_task: 1, partition: low}\n"
    )
    done = case.submit("--prep", str(file), "--data.train", str(tmp_path / "data" / "train.beton"))
    assert done.returncode == 0, done.stderr
    prep = RunFolder(case.run.path.parent / "prep-small")
    wait_for(lambda: prep.last("gave up"), "the end of the preparation", 120)
    wait_for(lambda: case.slurm.state(case.job) in {"", "CANCELLED"}, "the end of the training", 120)
    assert not case.start_steps()
    printed = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "status.py"), str(case.run.path), str(prep.path)],
        env=os.environ | case.slurm.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"run: job {case.job} ended before the run started" in printed
    assert "prep-small: write_beton imagefolder" in printed
