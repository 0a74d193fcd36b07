"""The commands of "Your own images" in configs/README.md, pasted one after the other, end with attention maps."""

import os
import re
import subprocess
from pathlib import Path

import timm
import torch
from PIL import Image

from tests.helpers.clone import Clone
from tests.helpers.paths import CONFIGS
from tests.helpers.photographs import crops

# So small that it takes seconds.
SMALLER = "--cluster local --model.image_size 32 --epochs 2 --global_batch 16 --optim.warmup_epochs 0"


def readme_commands(heading: str) -> list[str]:
    """The commands of the first block below a heading, each in one line."""
    section = (CONFIGS / "README.md").read_text().partition(f"\n## {heading}\n")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    return block[1].replace("\\\n", " ").splitlines()


def test_the_commands_for_own_images_go_from_a_folder_to_attention_maps(tmp_path: Path) -> None:
    """With two classes of photographs, a new photograph that is stored sideways, and weights in DeiT's format."""
    folder = tmp_path / "clone"
    folder.mkdir()
    Clone(folder)
    for row, name in enumerate(("cat", "dog")):
        (folder / "photos" / name).mkdir(parents=True)
        for i, content in enumerate(crops(row, 20, row)):
            (folder / "photos" / name / f"IMG_{i}.JPG").write_bytes(content)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    with Image.open(folder / "photos" / "cat" / "IMG_0.JPG") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(folder / "my-cat.jpg", exif=sideways)
    weights = timm.create_model("deit_small_patch16_224", pretrained=False).state_dict()
    torch.save({"model": weights}, folder / "deit_small_patch16_224-cd65a155.pth")
    setup, download, *commands = readme_commands("Your own images")
    assert setup == "make setup && source .venv/bin/activate"
    assert download.startswith("curl -LO https://") and download.endswith("/deit_small_patch16_224-cd65a155.pth")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{folder / '.venv' / 'bin'}:{environment['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    for command in commands:
        line = f"{command} {SMALLER}" if "jobs/submit.py" in command else command
        done = subprocess.run(
            line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert len(commands) == 5 and "attention maps: runs/photos/maps/000-my-cat.png" in done.stdout
    with Image.open(folder / "runs" / "photos" / "attention.png") as sheet:
        assert sheet.size == (238 + 8 * 168, 88 + 8 * 168)  # both classes have 4 pictures that were held out
