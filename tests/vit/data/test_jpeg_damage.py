"""JPEGs that lost pixels are refused by the writer, the checker and every decoder; harmless defects are not."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.beton_reader import read_beton_index
from data_prep.check_beton import main as check_beton
from data_prep.sources.source import InputError
from data_prep.write_beton import main
from tests.helpers.decoding import beton_of_one_jpeg
from tests.helpers.image_files import save_bytes
from tests.helpers.jpeg_damage import DAMAGES, DEFECTS, HEIGHT, KINDS, PICTURE, WIDTH
from tests.helpers.write_command import single_stderr_line, stored_images, write_beton
from vit.data import native
from vit.data.dataset_manifest import read_dataset_manifest
from vit.data.decode import CenterCrop, DecodeError, Decoder
from vit.data.image_file import BYTES_AFTER_END, BadImageError, decode_image

COPIED = ("baseline", "full-chroma", "optimized", "restarts")  # kinds of JPEGs that are copied unchanged
needs_native = pytest.mark.skipif(native.native_library() is None, reason="the C++ decoder was not built")


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_is_bad_only_if_pixels_are_lost(kind: str) -> None:
    """Every damage to a JPEG of each kind is found; every harmless defect gives the pixels of the file without it."""
    whole = KINDS[kind]()
    pixels = decode_image(whole).pixels
    for damage in DAMAGES.values():
        with pytest.raises(BadImageError):
            decode_image(damage(whole))
    for name, defect in DEFECTS.items():
        assert np.array_equal(decode_image(defect(whole)).pixels, pixels), name


@needs_native
@pytest.mark.parametrize("backend", ["native", "scaled", "ffcv"])
def test_training_keeps_to_the_same_rule(backend: str) -> None:
    """With the whole image as the crop.  FFCV's decoder also refuses some harmless defects, so these are not copied."""

    def is_refused(content: bytes) -> bool:
        beton, zero = beton_of_one_jpeg(content, HEIGHT, WIDTH), np.zeros(1, np.int64)
        try:
            Decoder(beton, CenterCrop(1.0), backend).decode(zero, zero, np.empty((1, 40, 40, 3), np.uint8))
        except DecodeError:
            return True
        return False

    for kind in COPIED:
        whole = KINDS[kind]()
        assert not is_refused(whole)
        for name, damage in DAMAGES.items():
            assert is_refused(damage(whole)), (kind, name)
        for name, defect in DEFECTS.items():
            state = native.decode_jpeg(defect(whole), HEIGHT, WIDTH).state
            assert is_refused(defect(whole)) == (backend == "ffcv" and state is native.JpegState.HARMLESS), (kind, name)


@needs_native
def test_write_beton_leaves_out_damaged_jpegs_and_counts_harmless_defects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each damaged file is named; the others are stored, and only those without any defect are copied."""
    folder, bad = tmp_path / "images" / "only", []
    for kind, make in KINDS.items():
        for name, change in (DAMAGES | DEFECTS).items():
            path = save_bytes(folder / f"{kind}-{name}.jpg", change(make()))
            bad += [str(path)] if name in DAMAGES else []
    out = tmp_path / "x.beton"
    arguments = ["imagefolder", str(folder.parent), "--no-shuffle", "--out", str(out)]
    assert main(arguments) == 1
    assert f"{sorted(bad)[0]}: cannot be used" in single_stderr_line(capsys)
    write_beton(out, *arguments[:3], "--on-bad", "skip")
    manifest = read_dataset_manifest(out)
    assert [each["image"] for each in manifest.left_out] == sorted(bad)
    assert manifest.samples == len(KINDS) * len(DEFECTS)
    assert manifest.image.copied == len(COPIED) * 4  # padded with ones, 3 more bytes, trailing bytes, unknown marker
    assert manifest.defects["Premature end of JPEG file"] == len(KINDS)
    assert manifest.defects["Warning: unknown JFIF revision number"] == len(KINDS) - 1  # Adobe's CMYK is no JFIF
    assert manifest.defects[BYTES_AFTER_END] == len(KINDS)
    assert "harmless defects: Corrupt JPEG data: extraneous bytes before marker (" in capsys.readouterr().out
    assert check_beton([str(out)]) == 0
    assert any(DEFECTS["trailing-bytes"](KINDS["baseline"]()) == stored for stored in stored_images(out))


def test_the_checker_finds_damage_in_a_file_that_another_program_wrote(tmp_path: Path) -> None:
    """A stored JPEG whose middle is zeros."""
    save_bytes(tmp_path / "images" / "only" / "a.jpg", KINDS["baseline"]())
    out = write_beton(tmp_path / "x.beton", "imagefolder", tmp_path / "images")
    content = KINDS["baseline"]()
    out.write_bytes(
        out.read_bytes().replace(content, DAMAGES["zeros-in-the-middle"](content).ljust(len(content), b"\0"))
    )
    with out.open("rb") as file, pytest.raises(InputError, match="is a damaged JPEG"):
        read_beton_index(out, 1).read_pixels(file.fileno(), 0)


def test_without_the_cpp_decoder_every_defect_counts_as_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFCV's decoder does not tell them apart.  Good files have Pillow's pixels."""
    for kind in KINDS:
        whole = KINDS[kind]()
        exact = decode_image(whole).pixels
        with monkeypatch.context() as patched:
            patched.setattr(native, "native_library", lambda: None)
            patched.setattr("vit.data.image_file.native_library", lambda: None)
            assert np.array_equal(decode_image(whole).pixels, exact)
            for name in DAMAGES if kind != "cmyk" else ():
                with pytest.raises(BadImageError):
                    decode_image(DAMAGES[name](whole))
    assert exact.shape == PICTURE.shape
