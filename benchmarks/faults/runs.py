"""The training runs of the fault campaign: Fashion-MNIST images, and a model of a few thousand weights."""

import subprocess
import sys
from pathlib import Path

from vit.config.parser import load_config
from vit.config.schema import Config, to_yaml
from vit.config.sections import AugmentConfig, DataConfig, LogConfig, ModelConfig, OptimConfig
from vit.kill_attempts import Attempt
from vit.run.folder import RunFolder
from vit.verify import artifacts, first_difference, passes_are_complete, shorten

SAMPLES, KEEP = {"train": 960, "val": 32}, 2
ROOT = Path(__file__).resolve().parents[2]
SAVE_RARELY, SAVE_OFTEN = ("--checkpoint.every_minutes", "1e6"), ("--checkpoint.every_minutes", "1e-6")


def make_data(folder: Path) -> None:
    """Writes a small subset of Fashion-MNIST as a data set, unless it exists."""
    for split, count in SAMPLES.items():
        if not (folder / f"{split}.beton").exists():
            command = [sys.executable, "-m", "data_prep.write_beton", "fashion-mnist", "--split", split]
            command += ["--mode", "raw", "--limit", str(count), "--workers", "1", "--out", f"{folder}/{split}.beton"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


class Runs:
    """Runs of one config in one folder, compared with a reference run on four ranks without faults."""

    def __init__(self, data: Path, folder: Path, steps: int) -> None:
        cfg = shorten(tiny_config(data), steps)
        self.folder, self.steps, self.samples = folder, cfg.steps(cfg.epochs, cfg.data.limit), cfg.data.limit
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(cfg))
        self.cfg = load_config(folder / "config.yaml")
        self.arguments = ["--config", str(folder / "config.yaml")]
        reference = self.run("reference")
        self.attempt(reference, 4, SAVE_RARELY).finish()
        self._expected = artifacts(reference)

    def run(self, name: str) -> RunFolder:
        """Another run of the same config."""
        return RunFolder(self.folder / name)

    def attempt(self, run: RunFolder, ranks: int, options: tuple[str, ...] = SAVE_OFTEN) -> Attempt:
        """Starts or resumes a run."""
        return Attempt(run, [*self.arguments, *options], ranks, fresh=False)

    def differences(self, run: RunFolder) -> list[str]:
        """The differences of a finished run to the reference run, bit by bit."""
        out = []
        for a, b in zip(self._expected, artifacts(run), strict=True):
            difference = first_difference(a, b)
            out += [f"{a.name}: {difference}"] if difference else []
        return out if passes_are_complete(run, self.samples) else [*out, "a pass does not have each sample once"]


def tiny_config(data: Path) -> Config:
    """A config of a few thousand weights, with all sources of randomness."""
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
