"""A `.beton` whose writing was killed halfway, for tests of resuming."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep import journal
from data_prep.publish import temporary_path
from data_prep.recipe import Recipe
from data_prep.sources.source import Source
from data_prep.write_beton import write
from tests.helpers.image_files import Pixels, noise
from tests.helpers.write_command import file_names


@dataclass
class Unfinished:
    """A file a.beton whose writing was killed halfway, and the finished file that it should become."""

    folder: Path  # of the unfinished file; tests resume a copy of it
    finished: Path
    source: Source
    recipe: Recipe

    def write_and_kill(self, folder: Path, processed: int) -> None:
        """Writes or resumes a.beton in `folder`, and kills the process after `processed` images.

        The journal gets a line after every chunk, which is 22 images.
        """
        append_if_due = journal.Journal.append_if_due

        def append_then_kill(self: journal.Journal) -> None:
            append_if_due(self)
            if self._pending:
                self._pending.result()
            if self._file.state.processed >= processed:
                os.kill(os.getpid(), signal.SIGKILL)

        def run() -> None:
            journal.INTERVAL = 0
            journal.Journal.append_if_due = append_then_kill  # type: ignore[method-assign]
            write(self.source, folder / "a.beton", self.recipe, 1)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert file_names(folder) == {".a.beton.tmp", ".a.beton.tmp.journal"}

    def copy_to(self, folder: Path) -> tuple[Path, Path]:
        """Copies the unfinished file and its journal to `folder`; returns their paths."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        temporary = temporary_path(folder / "a.beton")
        return temporary, journal.journal_path(temporary)

    def resume_in(self, folder: Path, **changed: Any) -> Path:
        """Runs the same command in `folder`, with `changed` settings of the recipe; returns the finished file."""
        write(self.source, folder / "a.beton", dataclasses.replace(self.recipe, **changed), 1)
        assert file_names(folder) == {"a.beton", "a.beton.json"}
        return folder / "a.beton"


def make_unfinished_file(folder: Path, finished_folder: Path) -> Unfinished:
    """400 raw images of 100 kB in five pages, killed after 308.

    Number 250 cannot be read and is left out; numbers 100 and 350 have EXIF data that cannot be read.
    """
    pixels = noise(190 * 2, 180 * 2)
    images: list[Pixels | str] = [pixels[i % 190 :][:190, i % 180 :][:, :180] for i in range(400)]
    images[250] = "/nowhere.png"
    for number in (100, 350):
        images[number] = str(finished_folder / f"{number}.webp")
        Image.fromarray(pixels[:190, :180]).save(images[number], lossless=True, exif=b"Exif\0\0garbage")
    source = Source(("a", "b"), images, np.arange(400) % 2)
    recipe = Recipe(source="here", mode="raw", on_bad="skip", shuffle=False)
    write(source, finished_folder / "a.beton", recipe, 1)
    unfinished = Unfinished(folder, finished_folder / "a.beton", source, recipe)
    unfinished.write_and_kill(folder, 300)
    return unfinished
