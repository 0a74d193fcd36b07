"""`make pets`: from the archives of Oxford-IIIT Pet to attention maps, and on after it was killed in any stage."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from data_prep.sources.oxford_pets import FOLDER
from tests.helpers.clone import Clone
from tests.helpers.photographs import crops, write_pets
from vit.checkpoint.format import find_checkpoints
from vit.run.folder import RunFolder

# A model and a run so small that the whole path takes seconds.
TINY = "--cluster local --epochs 3 --global_batch 16 --optim.warmup_epochs 0 --log.eval_every_epochs 3"
SMALL = f"{TINY} --model.width 48 --model.depth 2 --model.mlp_dim 96"
LONG = SMALL.replace("epochs 3", "epochs 60") + " --checkpoint.every_minutes 0.005"
COMMANDS = ("data_prep.write_beton", "jobs/submit.py", "vit.predict ")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A clone in which nothing was made, without a network."""
    folder = tmp_path / "clone"
    folder.mkdir()
    return Clone(folder)


def pets(clone: Clone, *words: str, arguments: str = SMALL) -> str:
    """The output of `make pets`, which must succeed."""
    code, output = clone.make("pets", "GPUS=1", f"ARGS={arguments}", *words)
    assert code == 0, output
    return output


def pasted(clone: Clone, output: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Pastes the command for one's own picture that is printed at the end, with other words at its end."""
    found = re.search(r"of your own picture +(.+) my-cat\.jpg (--attention \S+)$", output, re.MULTILINE)
    assert found, output
    line = " ".join([found[1], *words, found[2]])
    return subprocess.run(line, cwd=clone.folder, shell=True, capture_output=True, text=True, check=False)


def test_pets_are_trained_on_and_their_attention_is_drawn(clone: Clone) -> None:
    """From the archives; the same command again only says where the pictures are; then one's own picture, pasted."""
    write_pets(clone.folder / "data" / "pets")
    output = pets(clone)
    first = output.splitlines()[0]
    assert first.startswith("make pets downloads 800 MB of pictures")
    data = {f"{target}-{split}.beton" for target in ("species", "breed") for split in ("train", "val")}
    assert data <= {path.name for path in (clone.folder / "data" / "pets").iterdir()}
    assert re.search(r"test accuracy +top-1 \d", output) and re.search(r"^\d of 8 images right$", output, re.MULTILINE)
    run = clone.folder / "runs" / "pets"
    with Image.open(run / "attention.png") as sheet:
        assert sheet.size == (238 + 8 * 168, 88 + 8 * 168)  # image, rollout and 6 heads of 8 pictures
    drawn = (run / "attention.png").stat().st_mtime_ns
    again = pets(clone)
    assert [name for name in COMMANDS if name in again.partition("attention maps of")[0]] == ["jobs/submit.py"]
    assert "runs/pets is complete." in again and (run / "attention.png").stat().st_mtime_ns == drawn
    assert again.splitlines()[-2:] == output.splitlines()[-2:]
    (clone.folder / "my cat.jpg").write_bytes(crops(0, 1, 7)[0])
    (clone.folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    answer = pasted(clone, output, "'my cat.jpg'", "phone.heic")
    assert answer.returncode == 1 and re.search(r"%  (Cat|Dog)\n.*attention maps: runs/pets/maps/", answer.stdout, re.S)
    assert "phone.heic: a HEIC image, which Pillow cannot read; convert it to JPEG or PNG" in answer.stderr
    assert (run / "maps" / "000-my cat.png").is_file()


def test_published_weights_are_fine_tuned_on_all_breeds(clone: Clone) -> None:
    """A file of timm's ViT-S/16, given as INIT; here with random values, on smaller pictures."""
    write_pets(clone.folder / "data" / "pets")
    model = timm.create_model("vit_small_patch16_224", pretrained=False)
    save_file(model.state_dict(), clone.folder / "vit small.safetensors")
    arguments = f"{TINY} --model.num_classes 4 --model.image_size 32"
    output = pets(clone, "INIT=vit small.safetensors", arguments=arguments)
    assert (clone.folder / "runs" / "pets_finetune" / "attention.png").is_file()
    assert not (clone.folder / "runs" / "pets").exists()
    events = RunFolder(clone.folder / "runs" / "pets_finetune").events()
    assert any(event["event"] == "initialized" for event in events)
    assert "American" not in output and "Abyssinian" in output and "Beagle" in output
    (clone.folder / "vit small.safetensors").unlink()
    assert "runs/pets_finetune is complete." in pets(clone, "INIT=vit small.safetensors", arguments=arguments)


def test_weights_that_do_not_exist_are_noticed_before_anything_is_downloaded(clone: Clone) -> None:
    """In one line; 800 MB later would be too late."""
    code, output = clone.make("pets", "INIT=none.safetensors")
    message, error = output.splitlines()
    assert message.startswith("make pets: INIT=none.safetensors does not exist; configs/README.md, Cats and dogs, says")
    assert code == 2 and error.startswith("make: *** ") and not (clone.folder / "data").exists()


def test_without_a_network_one_line_says_what_to_download_and_the_same_command_goes_on(clone: Clone) -> None:
    """Both addresses and the folder; once the files are there, nothing else is needed."""
    proxy = "http://127.0.0.1:9"  # where nobody listens
    code, output = clone.make("pets", https_proxy=proxy, HTTPS_PROXY=proxy)
    assert code == 2
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    for name in ("images.tar.gz", "annotations.tar.gz"):
        assert f"https://www.robots.ox.ac.uk/~vgg/data/pets/data/{name} " in line
    assert "elsewhere, copy them into data/pets, and run the same command again" in line
    assert "Traceback" not in output and not list((clone.folder / "data" / "pets").glob("*.beton"))


def kill_when(clone: Clone, reached: Callable[[], object], ctrl_c: bool = False) -> str:
    """Kills `make pets` and all that it has started, as a power cut would, once a stage is reached; its output."""
    process = clone.start("pets", "GPUS=1", f"ARGS={LONG}")
    deadline = time.monotonic() + 240
    try:
        while not reached():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.001)  # some stages are short
        if ctrl_c:
            os.killpg(process.pid, signal.SIGINT)  # as the terminal does
            return process.communicate(timeout=240)[0]
    finally:
        if process.poll() is None:
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
    return process.communicate()[0]


def test_after_a_kill_in_any_stage_the_same_command_goes_on(clone: Clone) -> None:
    """While unpacking, writing, training (also by Ctrl-C) and drawing; no stage that is complete is done again."""
    folder = clone.folder / "data" / "pets"
    write_pets(folder)
    run = RunFolder(clone.folder / "runs" / "pets")
    stages = (folder / FOLDER / ".images.tar.gz.unpacking", folder / ".species-train.beton.tmp")
    for stage, end in zip(stages, ("species-train.beton", "breed-val.beton"), strict=True):
        kill_when(clone, lambda stage=stage, end=folder / end: stage.exists() or end.exists())
    output = kill_when(clone, lambda: find_checkpoints(run.checkpoints), ctrl_c=True)
    assert "stopping: saving at the next step" in output and "Traceback" not in output
    saved = len(run.events())
    kill_when(clone, lambda: any(event["event"] == "checkpoint" for event in run.events()[saved:]))
    assert run.last("finished") is None
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.beton")}
    assert len(written) == 4
    kill_when(clone, run.finished)
    assert not (run.path / "attention.png").exists()
    output = pets(clone, arguments=LONG)
    assert "data_prep.write_beton" not in output and "runs/pets is complete." in output
    assert written == {path: path.stat().st_mtime_ns for path in folder.glob("*.beton")}
    with Image.open(run.path / "attention.png") as sheet:
        assert sheet.height == 88 + 8 * 168
    starts = [event["step"] for event in run.events() if event["event"] == "started"]
    assert len(starts) >= 2 and starts[0] == 0 and starts[-1] > 0
