"""The prediction for each image of an evaluation: confusion matrix and worst mistakes, on any number of ranks."""

import io

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit.data.loader import Batch, ValData
from vit.distributed.world import World
from vit.run.evaluation_file import MISTAKES, Mistake


class Predictions:
    """The predictions of all S images of a validation set; each rank adds its batches, then all `share` them."""

    def __init__(self, data: ValData, world: World) -> None:
        self.data = data
        samples, device = data.samples, world.device
        self._predicted = torch.zeros(samples, dtype=torch.int32, device=device)  # 1 + the class; 0: not scored
        self._probability = torch.zeros(2, samples, dtype=torch.float32, device=device)  # of predicted and true class

    def add(self, batch: Batch, logits: Tensor, predicted: Tensor) -> None:
        """Records a batch: logits (B, D), and the class with the highest of them (B,)."""
        scored = torch.from_numpy(np.flatnonzero(batch.samples >= 0))
        samples = torch.from_numpy(batch.samples)[scored].to(logits.device)
        place = scored.to(logits.device)
        probabilities = logits[place].softmax(dim=1)
        chosen, labels = predicted[place, None], batch.labels[place, None]
        self._predicted[samples] = 1 + chosen[:, 0].int()
        self._probability[0, samples] = probabilities.gather(1, chosen)[:, 0]
        self._probability[1, samples] = probabilities.gather(1, labels)[:, 0]

    def share(self) -> None:
        """Gives all ranks the predictions of all; exact, because only one rank has a nonzero value for each image."""
        dist.all_reduce(self._predicted)
        dist.all_reduce(self._probability)

    def confusion(self) -> list[tuple[int, int, int]]:
        """(true class, predicted class, images), sorted; only those with at least one image."""
        labels, predicted, _ = self._on_host()
        scored = predicted >= 0
        pairs, counts = np.unique(np.stack([labels[scored], predicted[scored]]), axis=1, return_counts=True)
        return [(true, guess, n) for (true, guess), n in zip(pairs.T.tolist(), counts.tolist(), strict=True)]

    def worst_mistakes(self, count: int) -> tuple[list[Mistake], dict[str, bytes]]:
        """The mistakes with the highest probability for the wrong class, and their pictures as PNG files.

        The pixels are decoded again, to the same ones that the model saw.
        """
        labels, predicted, probability = self._on_host()
        wrong = np.flatnonzero((predicted >= 0) & (predicted != labels))
        worst = wrong[np.lexsort((wrong, -probability[0, wrong]))][:count]  # of equal ones, the first image first
        mistakes = [
            Mistake(
                file=f"{MISTAKES}/{place:02}-sample-{sample}.png",
                sample=sample,
                true=int(labels[sample]),
                predicted=int(predicted[sample]),
                probability=float(probability[0, sample]),
                true_probability=float(probability[1, sample]),
            )
            for place, sample in enumerate(worst.tolist())
        ]
        pixels = self.data.pixels(worst)
        return mistakes, {m.file: _png(each) for m, each in zip(mistakes, pixels, strict=True)}

    def _on_host(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Labels (S,), predicted classes (S,), -1 for an image that was not scored, and probabilities (2, S)."""
        predicted = self._predicted.cpu().numpy().astype(np.int64) - 1
        probability = np.nan_to_num(self._probability.cpu().numpy())  # a model that diverged has none
        return self.data.beton.labels[: self.data.samples], predicted, probability


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """(S, S, 3) as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
