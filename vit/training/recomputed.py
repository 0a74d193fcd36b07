"""Computes a micro-batch of any rank again, from its samples to its gradient, as `vit.integrity` compares it."""

import torch
from torch import Tensor

from vit.data.loader import TrainData
from vit.data.repeated import decode_micro_batch
from vit.integrity.checksums import row_checksums
from vit.integrity.micro_batch_sums import GradientSums, MicroBatchSums
from vit.integrity.recompute import Recomputation
from vit.run.folder import RunFolder
from vit.training.step import AugmentedBatch, StepRunner, augment_step


def recomputation_of(run: RunFolder, runner: StepRunner, data: TrainData) -> Recomputation:
    """The comparison of a run's micro-batches with recomputed ones."""
    trained = [name for name, parameter in runner.state.model.named_parameters() if parameter.requires_grad]

    def recompute(step: int, index: int) -> Tensor:
        return _recompute(runner, data, step, index)

    return Recomputation(run, runner.world, runner.schedule, runner.gradients, trained, recompute)


def _recompute(runner: StepRunner, data: TrainData, step: int, index: int) -> Tensor:
    cfg, device = runner.schedule.config(step), runner.world.device
    decoded = decode_micro_batch(data, step, index)
    pixels, labels = decoded.images.to(device), decoded.labels.to(device)
    images, targets = augment_step(cfg, step, [index], pixels, labels)
    inputs = row_checksums(pixels), row_checksums(images), row_checksums(targets)
    gradient = GradientSums(runner.gradients.parameters)
    gradient.add(runner.gradients.parameters, runner.gradient(step, index, images, targets))
    return MicroBatchSums(
        samples=torch.from_numpy(decoded.samples),
        labels=labels,
        pixels=inputs[0],
        images=inputs[1],
        targets=inputs[2],
        gradient=gradient.sums(),
    ).on_host()


def used_sums(batch: AugmentedBatch, j: int, gradient: Tensor) -> Tensor:
    """The sums of a rank's j-th micro-batch as it was used, given those of its gradient."""
    images, targets = batch.micro_batches[j]
    assert batch.recorded is not None, "recorded in all steps in which a micro-batch is recomputed"
    m = len(images)
    return MicroBatchSums(
        samples=torch.from_numpy(batch.samples[j * m : (j + 1) * m]),
        labels=batch.recorded[0],
        pixels=batch.recorded[1],
        images=row_checksums(images),
        targets=row_checksums(targets),
        gradient=gradient,
    ).on_host()
