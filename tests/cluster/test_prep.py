"""Preparing data sets as a job: on this machine, and on a real Slurm, where it may be ended at any moment."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from jobs.login.prep_config import load_prep
from tests.cluster.test_cluster import Case, campaign, case  # noqa: F401  (a fixture)
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import wait_for
from tests.jobs.test_submit import SUBMIT
from vit.run.folder import RunFolder

TRAIN_ALONE = "train: {{source: imagefolder, path: {0}, out: {1}/train.beton{2}}}\n"


def small(tmp_path: Path, photographs: Path) -> Path:
    """A file that asks for one set, of a folder of images."""
    file = tmp_path / "small.yaml"
    file.write_text(TRAIN_ALONE.format(photographs, tmp_path / "data", ", seed: 3"))
    return file


@pytest.fixture
def photographs(jpegs: Path) -> Path:
    """A folder of images, one folder a class."""
    return jpegs.parent / "photographs"


def test_the_file_for_imagenet_asks_for_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths are those of the tars in the folder where the command is typed."""
    monkeypatch.chdir(tmp_path)
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
        Path(name).touch()
    prep = load_prep(ROOT / "configs" / "imagenet.yaml")
    assert [one.out for one in prep.left] == [tmp_path / f"data/imagenet/{split}.beton" for split in ("train", "val")]
    readme = (ROOT / "README.md").read_text()
    for one in prep.sets:
        kind, tar, *_ = one.arguments
        assert f"data_prep.write_beton {kind} {tar} " in readme


def test_without_slurm_a_set_is_written_here_and_once(photographs: Path, tmp_path: Path) -> None:
    """Then there is nothing left to do."""
    command = [*SUBMIT[:2], "--prep", str(small(tmp_path, photographs)), "--cluster", "local"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert first.stdout.count("wrote ") == 1
    assert json.loads((tmp_path / "data" / "train.beton.json").read_text())["seed"] == 3
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout == "the data sets are there: data/train.beton\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "write `train:` and `val:`, and below each the options of data_prep.write_beton"),
        ("job: {time: 60}", "there is nothing to write; name a data set"),
        ("train: {source: imagefolder, path: HERE}", "train: the following arguments are required: --out"),
        ("train: {source: ilsvcr, path: HERE, out: a}", "train: argument SOURCE: invalid choice: 'ilsvcr'"),
        ("train: {source: imagefolder, path: HERE, out: a, qualty: 9}", "train: unrecognized arguments: --qualty 9"),
        ("train: {source: imagefolder, path: HERE, out: a, quality: 900}", "train: quality must be 1 to 100, not 900"),
        ("train: {source: imagefolder, path: nowhere, out: a}", "train: nowhere does not exist"),
        ("train: {source: imagefolder, path: HERE, out: a}\njob: {partitoin: cpu}", "job: unknown key 'partitoin'"),
        ("train: {source: imagefolder, path: HERE, out: a}\njob: {cpus_per_task: 0}", "must be a whole number from 1"),
        ("a: [", "while parsing"),
    ],
)
def test_what_cannot_be_written_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    """With the file and the set."""
    file = tmp_path / "bad.yaml"
    file.write_text(text.replace("HERE", str(tmp_path)))
    with pytest.raises(ValueError, match=r"bad\.yaml: ") as caught:
        load_prep(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_that_was_written_otherwise_is_refused(photographs: Path, jpegs: Path, tmp_path: Path) -> None:
    """Rather than trained on."""
    file = tmp_path / "other.yaml"
    file.write_text(f"train: {{source: imagefolder, path: {photographs}, out: {jpegs}, quality: 50}}\n")
    with pytest.raises(ValueError, match=r"other\.yaml: train: .* exists already with quality 90, not 50"):
        load_prep(file)


def writers(out: Path) -> list[psutil.Process]:
    """The processes that write a file."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "data_prep.write_beton" in process.cmdline() and str(out) in process.cmdline():
                found.append(process)
    return found


@campaign
@pytest.mark.parametrize("fault", ["requeue", "usr2", "kill"])
@pytest.mark.skipif(not PACKAGED_FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not installed")
def test_one_command_prepares_and_trains_whatever_ends_the_preparation(
    fault: str,
    betons: Path,
    case: Case,  # noqa: F811
) -> None:
    """The preparation is ended half-way and goes on; the training waits for it, and ends as it should."""
    data, file = case.run.path.parents[1] / "data", case.run.path.parents[1] / "prep.yaml"
    one = "{split}: {{source: fashion-mnist, split: {split}, limit: {limit}, mode: raw, out: {data}/{split}.beton}}\n"
    job = "job: {cpus_per_task: 2, time: 30, partition: low}\n"
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
    assert "prep-prep is in the queue already" in again.stdout
    assert "run is in the queue already" in again.stderr
    journal = data / ".train.beton.tmp"
    wait_for(lambda: journal.exists() and journal.stat().st_size > 10**6, "the file", 180)
    if fault == "requeue":
        case.slurm.call("scontrol", "requeue", number)
    elif fault == "usr2":
        case.slurm.call("scancel", "--signal", "USR2", number)
    else:
        writers(data / "train.beton")[0].parent().kill()  # type: ignore[union-attr]
    wait_for(lambda: len([e for e in prep.events() if e["event"] == "supervising"]) == 2, "the second start", 120)
    assert case.slurm.state(case.job) == "PENDING"
    wait_for(prep.finished, "the end of the preparation", 300)
    case.until(case.run.finished, "the end of the run", 300)
    assert case.slurm.job(number)["Restarts"] == "1"


@campaign
def test_training_does_not_wait_for_a_preparation_that_failed(case: Case, photographs: Path, tmp_path: Path) -> None:  # noqa: F811
    """A broken image ends it; Slurm then drops the training, and status says why there is none."""
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
    assert not case.starts()
    said = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "status.py"), str(case.run.path), str(prep.path)],
        env=os.environ | case.slurm.environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"run: job {case.job} ended before it began" in said
    assert "prep-small: write_beton imagefolder" in said
