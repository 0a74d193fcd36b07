"""Damage to an unfinished file or its journal: nothing damaged is used when the command resumes."""

import json
import os
from pathlib import Path

import pytest

from data_prep.beton_writer import BetonWriter
from data_prep.journal import Journal
from data_prep.publish import temporary_path
from data_prep.sources.fingerprint import take_fingerprint
from tests.helpers.unfinished_file import Unfinished
from tests.helpers.write_command import are_same_files

PAGE, IMAGE = 8 << 20, 190 * 180 * 3  # bytes


def test_a_journal_truncated_anywhere_restores_what_its_complete_lines_say(
    unfinished: Unfinished, tmp_path: Path
) -> None:
    """After a power loss it may end at any byte."""
    temporary, path = unfinished.copy_to(tmp_path)
    content, samples = path.read_bytes(), len(unfinished.source.labels)
    line_ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    identity = json.loads(content[9 : line_ends[0]])
    identity = {key: value for key, value in identity.items() if key not in ("format", "samples")}
    pristine, stamps = temporary.read_bytes(), take_fingerprint(unfinished.source).stamps
    near_line_ends = {end + by for end in (0, *line_ends[:2], line_ends[-1]) for by in (-2, -1, 0, 1, 9)}
    lengths = near_line_ends | set(range(0, len(content), 7919))
    for length in sorted(lengths & set(range(len(content) + 1))):
        path.write_bytes(content[:length])
        file = BetonWriter(temporary, samples, PAGE)
        with file.file, Journal(temporary, file, identity, stamps) as journal:
            journal.resume(allow_left_out=True)
        complete_lines = sum(end <= length for end in line_ends)
        assert file.state.processed == 22 * max(0, complete_lines - 1)
        assert temporary.stat().st_size == file.state.position
        assert path.exists() == (complete_lines > 1)
        temporary.write_bytes(pristine)
    for length in (5, line_ends[0], line_ends[2] - 1, len(content)):
        temporary, path = unfinished.copy_to(tmp_path / str(length))
        path.write_bytes(content[:length])
        assert are_same_files(unfinished.resume_in(path.parent), unfinished.finished)


def test_damage_to_the_unfinished_file_is_detected_and_written_again(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit, or a truncated file: the command resumes before the damage."""
    last_byte = temporary_path(unfinished.folder / "a.beton").stat().st_size - 1
    # Position of the flipped bit -> images that need not be written again.  Bytes before the first page are not used.
    expected = {4096: 308, PAGE: 0, PAGE + 100 * IMAGE: 88, last_byte: 286}
    for position, processed in expected.items():
        temporary, _ = unfinished.copy_to(tmp_path / str(position))
        flip_bit(temporary, position)
        assert are_same_files(unfinished.resume_in(temporary.parent), unfinished.finished)
        message = f"resuming after {processed} of 400" if processed else "starting over: the unfinished file is damaged"
        assert message in capsys.readouterr().err, position
    temporary, _ = unfinished.copy_to(tmp_path / "short")
    os.truncate(temporary, PAGE + 200 * IMAGE)
    assert are_same_files(unfinished.resume_in(temporary.parent), unfinished.finished)
    assert "resuming after 198 of 400" in capsys.readouterr().err


def test_damage_to_the_journal_is_detected(
    unfinished: Unfinished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit in its third line: the command resumes after what the second line says."""
    temporary, path = unfinished.copy_to(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    flip_bit(path, sum(map(len, lines[:3])) - 10)
    assert are_same_files(unfinished.resume_in(temporary.parent), unfinished.finished)
    assert "resuming after 22 of 400 images" in capsys.readouterr().err


def flip_bit(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
