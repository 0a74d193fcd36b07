"""The training loops that step.py compares; each is a function (see rounds.py) that trains on all batches.

bare         what one writes by hand: `torch.compile(model)`, and one line for each part of the step
timm         `train_one_epoch` of its train.py: with bf16 or float32 it uses no loss scaler
torchvision  `train_one_epoch` of its references/classification/train.py, without its metrics: `loss.item()` would wait
accelerate   the loop of its quick tour, with `dynamo_backend="inductor"`
lightning    a LightningModule with the model compiled, `Trainer(barebones=True)`: all logging off
ours         StepRunner with `exact: bits`, as the trainer of vit.train calls it

accelerate and Lightning have no models of their own: they train ours, as the bare loop does.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from benchmarks.peers.rounds import BETAS, CLASSES, CLIP_NORM, EMA_DECAY, EPS, LR, WEIGHT_DECAY, Batches, Setup, adamw
from vit.model.vision_transformer import VisionTransformer

Loop = Callable[[Setup, Batches], None]
LOG_EVERY = 50  # steps, `log.every_steps` of the trainer


def ours(setup: Setup, batches: Batches) -> None:
    """One rank of vit.train."""
    import numpy as np

    from vit.checkpoint.train_state import TrainState
    from vit.config.run_schedule import RunSchedule
    from vit.config.schema import Config
    from vit.config.sections import OptimConfig
    from vit.distributed.world import join_process_group
    from vit.training.step import AugmentedBatch, StepRunner

    optim = OptimConfig(lr=LR, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM, ema_decay=EMA_DECAY)
    cfg = Config(
        exact="bits",
        compile=True,
        precision=setup.precision,  # type: ignore[arg-type]
        device=setup.device.type,  # type: ignore[arg-type]
        global_batch=setup.batch,
        micro_batch=setup.batch,
        model=setup.model,
        optim=optim,
    )
    samples = np.arange(setup.batch)
    with join_process_group(cfg) as world:
        runner = StepRunner(RunSchedule(cfg, samples=1_281_167), world, TrainState.fresh(cfg, world.device))
        for step, batch in enumerate(batches):
            runner.forward_backward(step, AugmentedBatch([batch], samples, None))
            runner.update(step)
            if (step + 1) % LOG_EVERY == 0:
                runner.check_finite()


def bare(setup: Setup, batches: Batches) -> None:
    """The loop that the others are compared with."""
    model = VisionTransformer(setup.model).to(setup.device)
    ema = copy.deepcopy(model).requires_grad_(False)
    parameters, averages = list(model.parameters()), list(ema.parameters())
    optimizer, compiled = adamw(model), torch.compile(model)
    for images, targets in batches:
        with setup.autocast():
            loss = F.cross_entropy(compiled(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - EMA_DECAY)


def timm(setup: Setup, batches: Batches) -> None:
    """timm's model, optimizer, clipping, EMA and loss."""
    from timm import create_model
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3, dispatch_clip_grad

    name = {"vit_ti16": "tiny", "vit_s16": "small", "vit_b16": "base"}[setup.model_name]
    model = create_model(f"vit_{name}_patch16_224", num_classes=CLASSES, depth=setup.depth).to(setup.device)
    ema = ModelEmaV3(model, decay=EMA_DECAY)
    options = {"lr": LR, "weight_decay": WEIGHT_DECAY, "betas": BETAS, "eps": EPS, "fused": True}
    optimizer, criterion = create_optimizer_v2(model, "adamw", **options), SoftTargetCrossEntropy()
    compiled = torch.compile(model, backend="inductor")
    compiled.train()
    for number, (images, targets) in enumerate(batches, 1):
        with setup.autocast():
            loss = criterion(compiled(images), targets)
        loss.backward()
        dispatch_clip_grad(model.parameters(), CLIP_NORM, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=number)


def torchvision(setup: Setup, batches: Batches) -> None:
    """torchvision's model, with AdamW, clipping and EMA as its references use torch's."""
    from torchvision.models import VisionTransformer as Theirs

    torch.backends.cudnn.benchmark = True
    cfg = setup.model
    model = Theirs(224, 16, setup.depth, cfg.heads, cfg.width, cfg.mlp_dim, num_classes=CLASSES).to(setup.device)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer, criterion, compiled = adamw(model), nn.CrossEntropyLoss(), torch.compile(model)
    compiled.train()
    for images, targets in batches:
        with setup.autocast():
            loss = criterion(compiled(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        ema.update_parameters(model)


def accelerate(setup: Setup, batches: Batches) -> None:
    """`prepare`, `backward` and `clip_grad_norm_` of an Accelerator."""
    from accelerate import Accelerator

    precision = "bf16" if setup.precision == "bf16" else "no"
    accelerator = Accelerator(mixed_precision=precision, dynamo_backend="inductor", cpu=setup.device.type == "cpu")
    model = VisionTransformer(setup.model)
    loader: Any = DataLoader(batches, batch_size=None)
    model, optimizer, loader = accelerator.prepare(model, adamw(model), loader)
    ema = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    for images, targets in loader:
        optimizer.zero_grad()
        with accelerator.autocast():
            loss = F.cross_entropy(model(images), targets)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        ema.update_parameters(accelerator.unwrap_model(model))


def lightning(setup: Setup, batches: Batches) -> None:
    """A LightningModule and its Trainer; the EMA is its callback."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import WeightAveraging

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = VisionTransformer(setup.model)
            self.model.compile()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, targets = batch
            return F.cross_entropy(self.model(images), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.model)

    trainer = Trainer(
        accelerator="gpu" if setup.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if setup.precision == "bf16" else "32-true",
        gradient_clip_val=CLIP_NORM,
        callbacks=[WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))],
        max_epochs=1,
        barebones=True,
    )
    trainer.fit(Module(), DataLoader(batches, batch_size=None))


LOOPS: dict[str, Loop] = {
    "ours": ours,
    "bare": bare,
    "timm": timm,
    "torchvision": torchvision,
    "accelerate": accelerate,
    "lightning": lightning,
}
