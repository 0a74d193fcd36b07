"""The images that `vit.predict` classifies: files, and samples of a data set, of which the true class is known."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from vit.checkpoint.trained_model import TrainedModel
from vit.config.schema import Config
from vit.data.chosen_samples import choose_samples
from vit.data.decode import DamagedDataError
from vit.data.image_file import Pixels, TooManyPixelsError
from vit.data.image_input import load_image
from vit.data.loader import ValData
from vit.distributed.world import SINGLE_RANK


@dataclass(frozen=True)
class Prediction:
    """The predicted classes of one image, or why it could not be read."""

    file: Path
    sample: int | None = None  # its number, if the file is a data set
    truth: str | None = None  # its class there
    error: str | None = None
    best: tuple[tuple[str, float], ...] = ()  # class names and probabilities, most probable first
    pixels: Pixels | None = None  # (S, S, 3), the input of the model before normalization
    maps: Tensor | None = None  # (1 + H, G, G): rollout, and the heads of the last block


def read_image(file: Path, cfg: Config, max_megapixels: int) -> Prediction:
    """The pixels of an image, or why it cannot be read."""
    try:
        return Prediction(file, pixels=load_image(file, cfg, max_megapixels))
    except MemoryError:
        return Prediction(file, error="not enough memory to read it")
    except TooManyPixelsError as error:
        return Prediction(file, error=f"{error}; --max-megapixels admits it")
    except OSError as error:
        is_url = str(file).startswith(("http:/", "https:/"))
        return Prediction(file, error="download it first" if is_url else error.strerror or str(error))
    except ValueError as error:
        return Prediction(file, error=str(error))


def read_samples(run: TrainedModel, file: Path, count: int, seed: int) -> Iterator[Prediction]:
    """Yields images of a data set with their classes, as evaluation reads them; of as many classes as possible.

    Raises UserError if the file is not a valid data set, or has a class that the model does not have.
    """
    match = run.find_classes(file)
    # An image that is damaged is reported here, not replaced by another one.
    cfg = replace(run.cfg, data=replace(run.cfg.data, val=file, limit=0, on_bad="fail"))
    data = ValData(cfg, SINGLE_RANK, match)
    for sample in choose_samples(data.beton.labels, count, seed):
        truth = run.classes[match.logits[data.beton.labels[sample]]]
        try:
            pixels = data.pixels(sample[None])[0]
        except DamagedDataError as error:
            yield Prediction(file, int(sample), truth, error=str(error))
        else:
            yield Prediction(file, int(sample), truth, pixels=pixels)
