"""Damaged checkpoints are detected, and the message names the file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.checkpoints import assert_holds_step, save_checkpoint, tensors_of_every_dtype, tensors_of_step
from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, quarantine
from vit.checkpoint.load import load_checkpoint

FILES = ("manifest.json", "part-000.bin", "part-001.bin")


@contextmanager
def altered(path: Path, content: bytes) -> Iterator[None]:
    """Replaces the content of a file in a `with` block."""
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    """Each single bit of all files, one after the other."""
    tensors = {n: t for n, t in tensors_of_every_dtype().items() if n in ("special", "bytes", "scalar", "empty")}
    path = save_checkpoint(tmp_path, 3, tensors, {})
    for name in FILES:
        with (path / name).open("r+b", buffering=0) as file:
            content = file.read()
            for bit in range(8 * len(content)):
                file.seek(bit // 8)
                file.write(bytes([content[bit // 8] ^ 1 << bit % 8]))
                with pytest.raises(DamagedCheckpointError, match=f"^{path}/{name}"):
                    load_checkpoint(path)
                file.seek(bit // 8)
                file.write(content[bit // 8 :][:1])
    load_checkpoint(path)  # no error once all bits are restored


def test_the_message_names_the_damaged_tensor(tmp_path: Path) -> None:
    """The file, the tensor, its size and its offset."""
    path = save_checkpoint(tmp_path, 3, tensors_of_step(3), {}, parts=1)
    content = bytearray((path / "part-000.bin").read_bytes())
    content[256 + 8] ^= 1
    message = f"{path}/part-000.bin: model.b, 448 bytes at offset 256, is damaged: its checksum does not match"
    with altered(path / "part-000.bin", bytes(content)), pytest.raises(DamagedCheckpointError, match=message):
        load_checkpoint(path)


def test_a_truncated_extended_or_missing_file_is_detected(tmp_path: Path) -> None:
    """Truncated to any length."""
    path = save_checkpoint(tmp_path, 3, tensors_of_every_dtype(), {})
    for name in FILES:
        content = (path / name).read_bytes()
        for length in range(0, len(content), 7):
            with altered(path / name, content[:length]), pytest.raises(DamagedCheckpointError, match=name):
                load_checkpoint(path)
        with altered(path / name, content + b"\0"), pytest.raises(DamagedCheckpointError, match=name):
            load_checkpoint(path)
        (path / name).unlink()
        with pytest.raises(DamagedCheckpointError, match=name):
            load_checkpoint(path)
        (path / name).write_bytes(content)
    load_checkpoint(path)


def test_a_part_of_another_step_is_detected(tmp_path: Path) -> None:
    """Although the part itself is intact."""
    older, newer = (save_checkpoint(tmp_path, step, tensors_of_step(step), {}) for step in (1, 2))
    shutil.copy(older / "part-000.bin", newer / "part-000.bin")
    with pytest.raises(DamagedCheckpointError, match=r"model\.a"):
        load_checkpoint(newer)


def test_a_quarantined_checkpoint_is_not_found_again(tmp_path: Path) -> None:
    """Its files are kept under another name, and its step can be saved again."""
    path = save_checkpoint(tmp_path, 1000, tensors_of_step(1000), {})
    for _ in range(2):
        os.truncate(path / "part-001.bin", 100)
        with pytest.raises(DamagedCheckpointError) as error:
            load_checkpoint(path)
        message = quarantine(path, error.value)
        quarantined = tmp_path / message.rpartition(" ")[2]
        assert str(path) in message
        assert (quarantined / "part-000.bin").exists()
        assert find_checkpoints(tmp_path) == []
        assert_holds_step(save_checkpoint(tmp_path, 1000, tensors_of_step(1000), {}), 1000)


def test_a_file_system_error_is_not_reported_as_damage(tmp_path: Path) -> None:
    """The checkpoint may be readable at the next attempt, so it must not be quarantined."""
    path = save_checkpoint(tmp_path, 1, tensors_of_step(1), {})
    (path / "part-000.bin").unlink()
    os.symlink("part-000.bin", path / "part-000.bin")  # ELOOP, which root gets too
    with pytest.raises(OSError, match="symbolic links"):
        load_checkpoint(path)
