"""Helpers for tests of `data_prep.write_beton`: how to run it, and what it wrote and printed."""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

import pytest

from data_prep.beton_reader import read_beton_index
from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from data_prep.write_beton import main
from vit.data.dataset_manifest import manifest_path, read_dataset_manifest

needs_fashion_mnist = pytest.mark.skipif(
    not PACKAGED_FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)


def write_beton(out: Path, *arguments: object) -> Path:
    """Writes a file with two workers, which must succeed."""
    assert main([*map(str, arguments), "--out", str(out), "--workers", "2"]) == 0
    return out


def stored_images(beton: Path) -> list[bytes]:
    """The bytes of the image of each sample, as stored in the file."""
    index = read_beton_index(beton, len(read_dataset_manifest(beton).classes))
    content = beton.read_bytes()
    return [content[start : start + size] for start, size in zip(index.offset, index.size, strict=True)]


def are_same_files(one: Path, other: Path) -> bool:
    """Whether two .beton files and their manifests have the same bytes."""
    pairs = [(one, other), (manifest_path(one), manifest_path(other))]
    return all(a.read_bytes() == b.read_bytes() for a, b in pairs)


def file_names(folder: Path) -> set[str]:
    """The names of everything in a folder."""
    return {path.name for path in folder.iterdir()}


def single_stderr_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed on stderr, which must be one line."""
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1, stderr
    return stderr


class WriteCommand:
    """The command in a process of its own, forked from this one, which has done all imports already."""

    def __init__(self, arguments: list[str], stderr: Path) -> None:
        self._stderr = stderr
        self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(arguments,))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def _run(self, arguments: list[str]) -> None:
        os.setsid()
        os.dup2(os.open(self._stderr, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = os.fdopen(2, "w")
        sys.argv[1:] = arguments
        del sys.modules["data_prep.write_beton"]  # runpy warns about modules that are imported already
        runpy.run_module("data_prep.write_beton", run_name="__main__", alter_sys=True)

    def wait(self) -> tuple[int | None, str]:
        """Waits until the process ends; returns its exit code and its stderr.  Fails if it hangs."""
        self.process.join(20)
        assert not self.process.is_alive(), "the command hangs"
        return self.process.exitcode, self._stderr.read_text()

    def workers(self) -> list[int]:
        """The process ids of the workers: children with the parent's command line, unlike multiprocessing's tracker."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        own = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]
