"""How each trainer is started, resumed, and where it saves, as its documentation says."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
EPOCHS, IMAGES, BATCH, CLASSES = 3, 48, 4, 8


@dataclass(frozen=True)
class Trainer:
    """A trainer that runs here on `ranks` CPU processes."""

    name: str
    ranks: int
    script: Path
    options: tuple[str, ...]  # {data}, {folder} and {lr} are replaced
    saved: str  # its newest checkpoint at the end of an epoch, in its folder
    weights: str  # the key of the weights in it
    resume: tuple[str, ...] = ()  # options; empty if it finds what it has saved by itself
    on_slurm: bool = False  # its ranks read the variables that srun sets
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, data: Path, folder: Path, lr: str, resume: bool) -> list[str]:
        """The command of a rank."""
        options = [*self.options, *(self.resume if resume else ())]
        return [sys.executable, str(self.script), *(o.format(data=data, folder=folder, lr=lr) for o in options)]

    def variables(self, rank: int, port: int) -> dict[str, str]:
        """The environment of a rank, as torchrun or srun sets it."""
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""} | self.environment
        if self.on_slurm:
            given |= {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost"}
            given |= {"SLURM_NTASKS": str(self.ranks), "SLURM_NTASKS_PER_NODE": str(self.ranks)}
            given |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        elif self.ranks > 1:
            given |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks)}
        return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | given


def timm(clone: Path) -> Trainer:
    """train.py of a clone of huggingface/pytorch-image-models; on one rank, because its DDP needs GPUs."""
    model = f"--model vit_tiny_patch16_224 --img-size 32 --model-kwargs img_size=32 --num-classes {CLASSES}"
    model += " --no-aug --opt sgd --warmup-epochs 0"
    run = f"--epochs {EPOCHS} --batch-size {BATCH} --workers 1 --device cpu --seed 0 --log-interval 1"
    return Trainer(
        name="timm",
        ranks=1,
        script=clone / "train.py",
        options=("{data}", *f"{model} {run} --lr".split(), "{lr}", "--output", "{folder}", "--experiment", "run"),
        saved="run/last.pth.tar",
        weights="state_dict",
        resume=("--resume", "{folder}/run/last.pth.tar"),
        environment={"PYTHONPATH": str(clone)},
    )


def torchvision(clone: Path) -> Trainer:
    """references/classification/train.py of a clone of pytorch/vision; on one rank, because several need GPUs."""
    crops = "--train-crop-size 32 --val-crop-size 32 --val-resize-size 32"
    run = f"--model shufflenet_v2_x0_5 --device cpu --epochs {EPOCHS} -b {BATCH} -j 0 --print-freq 1 {crops}"
    return Trainer(
        name="torchvision",
        ranks=1,
        script=clone / "references" / "classification" / "train.py",
        options=("--data-path", "{data}", *run.split(), "--lr", "{lr}", "--output-dir", "{folder}"),
        saved="checkpoint.pth",
        weights="model",
        resume=("--resume", "{folder}/checkpoint.pth"),
        environment={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},  # its checkpoints contain its arguments
    )


def lightning() -> Trainer:
    """Lightning's Trainer with its SLURMEnvironment, on two ranks that seem to be started by srun."""
    return Trainer(
        name="Lightning",
        ranks=2,
        script=HERE / "lightning_run.py",
        options=("{data}", "{folder}", "{lr}"),
        saved="checkpoints/last.ckpt",
        weights="state_dict",
        on_slurm=True,
    )
