"""Decodes a micro-batch of any step again, apart from the batches that training reads ahead."""

import functools

import torch

from vit.data.damage import DamagedSamples
from vit.data.decode import Decoder
from vit.data.loader import Batch, BatchPlan, BatchReader, TrainData, decoded_size


def decode_micro_batch(data: TrainData, step: int, index: int) -> Batch:
    """The samples of one micro-batch of a step, on the CPU: with the crops, sizes and replacements of training.

    Damaged samples that are replaced are not reported again.  Raises DamagedDataError and OSError as training does.
    """
    cfg, same = data.schedule.config(step), data.reader.decoder
    on_damage = DamagedSamples(data.beton).replace if cfg.data.on_bad == "skip" else None
    decoder = Decoder(data.beton, same.crop, data.decoder, on_damage, cfg.data.interpolation)
    size = decoded_size(data.cfg, cfg)
    reader = BatchReader(decoder, cfg.micro_batch, size, data.reader.workers, 0, torch.device("cpu"))
    plan = BatchPlan(functools.partial(data.views, step, [index]), size)
    (batch,) = reader.read([plan])
    return batch
