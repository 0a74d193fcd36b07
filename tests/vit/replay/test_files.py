"""`--pictures` and `--dump` write files about a step, and nothing into the run folder."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from tests.helpers.replayed_runs import contents, replay, replayed
from vit.replay.dump import statistics


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_the_model_saw_is_drawn(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As images, not one color, on a white sheet; its path is printed."""
    path, before = tmp_path / "new" / "sheet.png", contents(trained)
    assert replay(trained, "--step", "2", "--pictures", str(path)) == 0
    assert f"what the model saw: {path}" in capsys.readouterr().out
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[0] > 1000 and sheet.shape[1] > 1000
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 200
    assert contents(trained) == before


@pytest.fixture(scope="module")
def dumped(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written of step 3."""
    folder = tmp_path_factory.mktemp("dump") / "step-3"
    assert replay(trained, "--step", "3", "--dump", str(folder)) == 0
    return folder


def test_inputs_and_gradients_are_those_of_the_step(
    dumped: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The samples are those of the run, the norm of the gradients is the one that it recorded."""
    inputs: dict[str, Any] = safetensors.torch.load_file(dumped / "inputs.safetensors")
    assert inputs["images"].shape == (4, 24, 3, 28, 28)
    assert inputs["logits"].shape == inputs["targets"].shape == (4, 24, 10)
    assert torch.allclose(inputs["targets"].sum(-1), torch.ones(4, 24))
    found = replayed(capsys, trained, 3)
    assert inputs["samples"].tolist() == [each["samples"] for each in found["micro_batches"]]
    assert math.isclose(float(inputs["losses"].mean()), found["loss"], rel_tol=1e-6)
    assert json.loads((dumped / "step.json").read_text()) == found
    gradients = safetensors.torch.load_file(dumped / "gradients.safetensors")
    norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
    assert math.isclose(norm, found["recorded"]["grad_norm"], rel_tol=1e-6)
    with safetensors.safe_open(dumped / "gradients.safetensors", "pt") as file:
        assert file.metadata() == {"step": "3", "scale": "1"}
    rows = {row["weight"]: row for row in table(dumped / "gradients.csv")}
    assert rows.keys() == gradients.keys()
    assert math.isclose(float(rows["head.bias"]["gradient_norm"]), float(gradients["head.bias"].norm()), rel_tol=1e-5)


def test_activations_are_described_in_order(dumped: Path) -> None:
    """Each module once for each micro-batch; the last one is the model, with its logits."""
    rows = table(dumped / "activations.csv")
    first = [row["module"] for row in rows if row["micro_batch"] == "0"]
    assert first[0] == "patches.proj" and first[-2:] == ["head", "the model"]
    assert {"blocks.0.attention", "blocks.1.mlp.up"} <= set(first)
    assert len(rows) == 4 * len(first)
    assert {row["nan"] for row in rows} == {row["infinite"] for row in rows} == {"0"}
    assert rows[-1]["shape"] == "24x10"


def test_statistics_leave_out_what_is_not_finite() -> None:
    """And count it."""
    found = statistics(torch.tensor([0.0, -3.0, math.nan, math.inf]))
    expected = {"mean": -1.5, "std": 1.5, "max_abs": 3.0, "zeros": 0.25, "nan": 0.25, "infinite": 0.25}
    assert found == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--pictures", "sheet.jpg"), "--pictures sheet.jpg: the name of the picture must end with .png"),
        (("--dump", "configs"), "--dump configs exists and is not an empty folder; name a new one"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line(
    options: tuple[str, str], reason: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained."""
    try:
        code = replay(trained, "--step", "2", *options)
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    assert capsys.readouterr() == ("", f"vit.replay: {reason}\n")


@pytest.mark.parametrize(
    "options", [("--step", "2", "--pictures"), ("--step", "2", "--dump"), ("--around", "2", "--out")]
)
def test_a_file_that_cannot_be_written_is_an_error_before_the_steps(
    options: tuple[str, ...], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way to a step may take hours."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "file").write_text("")
    for name in ("file/a/b.png", "folder.png"):
        assert replay(trained, *options, str(tmp_path / name)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"vit.replay: {options[-1]} {tmp_path / name}" in printed.err
