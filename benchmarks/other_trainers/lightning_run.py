"""Trains a small ViT with Lightning's Trainer, as its documentation for Slurm says.

python lightning_run.py DATA FOLDER LEARNING_RATE
"""

import os
import sys
from pathlib import Path

import timm
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Resize, ToTensor

CLASSES = 8


class Classifier(LightningModule):
    """timm's ViT-Ti at 32 pixels."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=CLASSES)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """The loss of a batch."""
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        print(f"loss {loss.item()}", flush=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


if __name__ == "__main__":
    data, folder, lr = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    seed_everything(0)
    images = ImageFolder(str(data / "train"), Compose([Resize(32), ToTensor()]))
    trainer = Trainer(
        accelerator="cpu",
        devices=int(os.environ.get("SLURM_NTASKS", "1")),
        num_nodes=1,
        strategy="ddp",
        max_epochs=3,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True)],
    )
    model = Classifier(lr)
    saved_at_signal = any(folder.glob("hpc_ckpt_*.ckpt"))  # which it finds only without a `ckpt_path`
    trainer.fit(model, DataLoader(images, batch_size=4, shuffle=True), ckpt_path=None if saved_at_signal else "last")
    if trainer.is_global_zero:
        torch.save(model.model.state_dict(), folder / "final.pt")
