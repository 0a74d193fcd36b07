"""Names that are not UTF-8, as old archives contain: Linux accepts any bytes."""

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

from tests.helpers.image_files import image_folder, save_image, smooth
from tests.helpers.write_command import file_names
from vit.data.dataset_manifest import manifest_path, read_dataset_manifest


class Commands:
    """Runs commands in forks of this process, whose outputs refuse what they cannot encode, as under en_US.UTF-8."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def __call__(self, command: str, *arguments: object) -> tuple[int | None, str]:
        """Exit code and output of a command of data_prep."""
        process = multiprocessing.get_context("fork").Process(target=self._run, args=(command, arguments))
        process.start()
        process.join(60)
        return process.exitcode, self._output.read_text(encoding="utf-8")

    def _run(self, command: str, arguments: tuple[object, ...]) -> None:
        file = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", errors="strict", closefd=False) for n in (1, 2))  # noqa: SIM115
        sys.argv = [command, *map(str, arguments)]
        sys.modules.pop(f"data_prep.{command}", None)  # runpy warns about modules that are imported already
        runpy.run_module(f"data_prep.{command}", run_name="__main__", alter_sys=True)


def test_names_that_are_not_utf8_are_written_printed_and_checked(tmp_path: Path) -> None:
    """Of the folder, a class, an image that is left out, and the file itself; every command ends with exit code 0."""
    run = Commands(tmp_path / "output")
    name = os.fsdecode(b"caf\xe9")
    folder = image_folder(tmp_path / name)
    save_image(folder / name / f"{name}.png", smooth(20, 20))
    (folder / name / f"{name}.jpg").write_bytes(b"no image")
    out, picture = tmp_path / f"{name}.beton", tmp_path / f"{name}.png"
    arguments = ("imagefolder", folder, "--out", out, "--workers", 1)
    code, output = run("write_beton", *arguments)
    assert (code, output.count("\n")) == (1, 1)
    assert r"caf\xe9/caf\xe9.jpg: cannot be used" in output
    code, output = run("write_beton", *arguments, "--on-bad", "skip")
    assert code == 0, output
    assert f"wrote {tmp_path}/caf\\xe9.beton: 7 samples" in output
    assert r"caf\xe9.jpg" in output
    manifest = read_dataset_manifest(out)
    assert manifest.classes == [name, "cat", "dog"]
    assert [each["image"] for each in manifest.left_out] == [str(folder / name / f"{name}.jpg")]
    assert run("write_beton", *arguments, "--on-bad", "skip") == (0, f"already written: {tmp_path}/caf\\xe9.beton\n")
    code, output = run("check_beton", out, "--picture", picture)
    assert (code, "intact" in output) == (0, True), output
    assert picture.exists()
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(manifest.classes))
    manifest_path(out).unlink()
    code, output = run("describe_beton", out, "--classes", classes)
    assert code == 0, output
    assert read_dataset_manifest(out).classes == manifest.classes
    assert file_names(tmp_path) == {
        name,
        f"{name}.beton",
        f"{name}.beton.json",
        f"{name}.png",
        "classes.json",
        "output",
    }
