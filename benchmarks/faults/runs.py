"""The small real runs: real images, and a model of a few thousand weights."""

import subprocess
import sys
from pathlib import Path

from vit.config.parser import load_config
from vit.config.schema import AugmentConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, to_yaml
from vit.kill_attempts import Attempt
from vit.run.folder import RunFolder
from vit.verify import first_difference, parts, samples_are_whole, shortened

SAMPLES, KEEP = {"train": 960, "val": 32}, 2
ROOT = Path(__file__).resolve().parents[2]
SELDOM, OFTEN = ("--checkpoint.every_minutes", "1e6"), ("--checkpoint.every_minutes", "1e-6")


def make_data(folder: Path) -> None:
    """Writes a few of Fashion-MNIST's images as a data set, unless it is there."""
    for split, count in SAMPLES.items():
        if not (folder / f"{split}.beton").exists():
            command = [sys.executable, "-m", "data_prep.write_beton", "fashion-mnist", "--split", split]
            command += ["--mode", "raw", "--limit", str(count), "--workers", "1", "--out", f"{folder}/{split}.beton"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


class Runs:
    """Runs of one recipe in one folder; the first, on four ranks, is left alone, and the others are held against it."""

    def __init__(self, data: Path, folder: Path, steps: int) -> None:
        cfg = shortened(_config(data), steps)
        self.folder, self.steps, self.samples = folder, cfg.steps(cfg.epochs, cfg.data.limit), cfg.data.limit
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(cfg))
        self.cfg = load_config(folder / "config.yaml")
        self.arguments = ["--config", str(folder / "config.yaml")]
        self.straight = self.run("left-alone")
        self.attempt(self.straight, 4, SELDOM).finish()
        self._parts = parts(self.straight)

    def run(self, name: str) -> RunFolder:
        """Another run of the same recipe."""
        return RunFolder(self.folder / name)

    def attempt(self, run: RunFolder, ranks: int, saving: tuple[str, ...] = OFTEN) -> Attempt:
        """Starts it, or goes on with it."""
        return Attempt(run, [*self.arguments, *saving], ranks, fresh=False)

    def differences(self, run: RunFolder) -> list[str]:
        """What of a finished run differs from the one that was left alone: a bit is enough."""
        out = []
        for a, b in zip(self._parts, parts(run), strict=True):
            difference = first_difference(a, b)
            out += [f"{a.what}: {difference}"] if difference else []
        return out if samples_are_whole(run, self.samples) else [*out, "an epoch is not each sample once"]


def _config(data: Path) -> Config:
    return Config(
        seed=11,
        global_batch=32,
        micro_batch=8,
        device="cpu",
        model=ModelConfig(
            image_size=28, patch_size=7, width=16, depth=1, heads=2, mlp_dim=32, num_classes=10, dropout=0.1
        ),
        data=DataConfig(train=data / "train.beton", val=data / "val.beton", workers=1, crop_scale=(0.3, 1.0)),
        augment=AugmentConfig(mixup=0.2),
        optim=OptimConfig(lr=3e-3, clip_norm=1.0),
        log=LogConfig(every_steps=1),
    )
