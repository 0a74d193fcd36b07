"""Everything that is missing of the data sets is named at once, each file once, with the command that makes it."""

import shlex
import shutil
from pathlib import Path

import pytest

from data_prep.options import parse_arguments
from jobs.submit import main
from tests.helpers.paths import CONFIGS
from vit.config.parser import load_config
from vit.data.dataset_manifest import manifest_path, missing_file


def submit(capsys: pytest.CaptureFixture[str], train: Path, val: Path, *options: str) -> tuple[int, str, str]:
    """The exit code and the output of a submission."""
    words = ["--config", str(CONFIGS / "demo.yaml"), "--cluster", "local", "--runs-dir", str(train.parent / "runs")]
    code = main([*words, "--data.train", str(train), "--data.val", str(val), *options])
    return code, *capsys.readouterr()


def test_a_dry_run_names_both_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As comments before the config; one file that serves as both is named once."""
    train, val = tmp_path / "train.beton", tmp_path / "my val.beton"
    code, out, err = submit(capsys, train, val, "--dry-run")
    first, second, third = out.splitlines()[:3]
    assert (code, err) == (0, "")
    assert first.startswith(f"# {train} does not exist; ")
    assert f"data_prep.write_beton imagefolder FOLDER --out {train} creates it from a folder of images" in first
    assert second.startswith(f"# {val} does not exist; ") and f"--out '{val}' creates it" in second
    assert third.startswith("# ") and third.endswith("config.yaml")
    assert submit(capsys, train, train, "--dry-run")[1].count(f"{train} does not exist") == 1


def test_a_submission_is_refused_with_everything_that_is_missing(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set, and the manifest or the file of another one."""
    train, val = tmp_path / "train.beton", tmp_path / "val.beton"
    shutil.copy(betons / "val.beton", val)
    code, out, err = submit(capsys, train, val)
    title, first, second = err.splitlines()
    assert (code, out, title) == (2, "", "submit.py: files are missing:")
    assert first.startswith(f"  {train} does not exist; ")
    assert second.startswith(f"  {val}.json does not exist; ") and "data_prep.describe_beton" in second
    shutil.copy(manifest_path(betons / "val.beton"), manifest_path(val))
    val.unlink()
    code, out, err = submit(capsys, val, val)
    assert (code, out) == (2, "")
    assert err.startswith(
        f"submit.py: {val} does not exist, but its manifest does; copy it again, or write it anew with "
    )


@pytest.mark.parametrize(
    ("recipe", "source"),
    [
        ("demo", "fashion-mnist {}"),
        ("pets", "oxford-pets {}, species"),
        ("pets_finetune", "oxford-pets {}, breed"),
        ("vit_b16", "ILSVRC2012_img_{}.tar"),
    ],
)
def test_for_the_data_of_a_recipe_the_command_names_the_published_files(
    recipe: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a folder of images, which Fashion-MNIST and ImageNet's tars are not; it can be pasted."""
    monkeypatch.chdir(tmp_path)
    data = load_config(CONFIGS / f"{recipe}.yaml").data
    for split, path in (("train", data.train), ("val", data.val)):
        command = missing_file(path).partition("data_prep.write_beton ")[2].partition(" creates it (--help lists")[0]
        arguments = parse_arguments(shlex.split(command))
        assert arguments.out == path and arguments.recipe.source.endswith(source.format(split))
