"""RandAugment with timm's operations, as in DeiT (`rand-m9-mstd0.5-inc1`): pixels, amounts and distributions.

timm's operations use Pillow, whose rounding differs in some of them by a level or two.  There are two larger
differences: timm resamples with a bicubic filter by default, this project bilinearly; and Pillow does not blend the
image's border with the fill color.
"""

import math
import random as python_random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm
from torch import Tensor

from tests.helpers.images import noise, photographs
from tests.helpers.statistics import KS_LIMIT, chi_square, generator, ks_distance
from vit.augment import randaugment
from vit.augment.pipeline import augment
from vit.augment.randaugment import OPERATIONS, TIMM_OPERATIONS
from vit.config.sections import AugmentConfig

MEAN = (124, 116, 104)  # DeiT's fill color
TIMM_NAMES = {  # timm's name of each operation
    name: name + {"TranslateX": "Rel", "TranslateY": "Rel"}.get(name, "") for name in TIMM_OPERATIONS
} | {name: f"{name}Increasing" for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")}
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
DEIT = AugmentConfig(randaugment="timm", randaugment_ops=2, randaugment_magnitude=9, randaugment_deviation=0.5)


def amount(name: str, magnitude: float, sign: int, H: int = 40, W: int = 56) -> float:
    """This project's amount of an operation for an image of H x W pixels."""
    op = np.array([list(OPERATIONS).index(name)])
    return float(randaugment.timm_amounts(op, np.array([magnitude]), np.array([sign]), H, W)[0])


def timm_arguments(name: str, magnitude: float, sign: int) -> tuple[Any, ...]:
    """The arguments with which timm calls its operation."""
    level = timm.LEVEL_TO_ARG[TIMM_NAMES[name]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "_randomly_negate", lambda value: value * sign)
        return () if level is None else level(magnitude, {})


def test_the_operations_are_those_of_timm() -> None:
    """The 15 whose strength increases with the magnitude."""
    assert {TIMM_NAMES[name] for name in TIMM_OPERATIONS} == set(timm._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("name", TIMM_OPERATIONS)
def test_an_amount_is_that_of_timm_at_every_magnitude_and_sign(name: str) -> None:
    """After converting units: amounts are factors minus 1, numbers of cleared bits, and translations in pixels."""
    for magnitude in np.linspace(0, 10, 81).tolist():
        for sign in (-1, 1):
            ours, theirs = amount(name, magnitude, sign), timm_arguments(name, magnitude, sign)
            if name in ("AutoContrast", "Equalize", "Invert"):
                assert (ours, theirs) == (0, ())
                continue
            (value,) = theirs
            if name in ("Brightness", "Color", "Contrast", "Sharpness"):
                value -= 1
            elif name == "Posterize":
                value = 8 - value
            elif name.startswith("Translate"):
                value *= {"TranslateX": 56, "TranslateY": 40}[name]
            assert ours == pytest.approx(value, abs=1e-12), (magnitude, sign)


def apply_timm(image: Tensor, name: str, magnitude: float, sign: int, resample: Image.Resampling) -> Tensor:
    """One operation by timm: (3, H, W) uint8 -> the same."""
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    values = timm_arguments(name, magnitude, -sign if name.startswith("Translate") else sign)
    out = timm.NAME_TO_OP[TIMM_NAMES[name]](pil_image, *values, fillcolor=MEAN, resample=resample)
    return torch.from_numpy(np.array(out)).permute(2, 0, 1)


def apply_ours(image: Tensor, name: str, magnitude: float, sign: int) -> Tensor:
    op, value = np.array([list(OPERATIONS).index(name)]), np.array([amount(name, magnitude, sign, *image.shape[1:])])
    return randaugment.apply(image[None].clone(), op, value, MEAN)[0]


@pytest.mark.parametrize("name", TIMM_OPERATIONS)
def test_an_operation_gives_the_pixels_of_timm_at_every_magnitude_and_sign(name: str) -> None:
    """Equal for operations by integer tables, otherwise within one or two levels; bilinear, without the border."""
    exact = ("Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")
    geometric = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    bound = 0 if name in exact else 2 if name in ("Contrast", "Color") else 1
    for image in (*photographs(2, 64, 64), *noise(1, 40, 56)):
        for magnitude in (0, 3, 7.3, 9, 9.5, 10 if name != "Posterize" else 9.9):  # newer Pillows keep at least one bit
            for sign in (-1, 1) if name in SIGNED else (1,):
                reference = apply_timm(image, name, magnitude, sign, Image.Resampling.BILINEAR)
                difference = (apply_ours(image, name, magnitude, sign).int() - reference.int()).abs()
                if name in geometric:  # without the border, which only one of the two blends with the fill color
                    white = torch.full_like(image, 255)
                    inside = apply_timm(white, name, magnitude, sign, Image.Resampling.BILINEAR) == 255
                    inside &= apply_ours(white, name, magnitude, sign) == 255
                    assert inside.float().mean() > 0.3
                    difference = difference[inside]
                assert difference.max() <= bound, (magnitude, sign, int(difference.max()))


def test_magnitudes_signs_and_operations_are_distributed_as_in_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the operations are applied; operations and signs are uniform, and magnitudes are clipped at 10."""
    drawn: dict[str, list[float]] = {name: [] for name in TIMM_NAMES.values()}
    for name in TIMM_NAMES.values():
        monkeypatch.setitem(timm.LEVEL_TO_ARG, name, lambda level, _, name=name: drawn[name].append(level) or ())
        monkeypatch.setitem(timm.NAME_TO_OP, name, lambda image, **_: image)
    reference = timm.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    python_random.seed(0), np.random.seed(0)
    micro_batches, B = 400, 64
    for _ in range(micro_batches * B // 2):
        reference(None)
    op, magnitude, sign = (np.stack(values) for values in zip(*[
        randaugment.draw_timm(B, 9, 0.5, generator(key)) for key in range(micro_batches)
    ], strict=True))  # fmt: skip
    applied = op != list(OPERATIONS).index("Identity")
    for share in (applied.mean(), sum(map(len, drawn.values())) / (micro_batches * B)):
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(micro_batches * B)
    count = np.bincount(op[applied], minlength=len(OPERATIONS))[1:]
    assert abs(chi_square(torch.from_numpy(count))) < 4
    assert abs(chi_square(torch.tensor([len(levels) for levels in drawn.values()]))) < 4
    assert ks_distance(magnitude[applied], np.concatenate(list(drawn.values()))) < KS_LIMIT
    for name in ("ShearX", "Equalize", "SolarizeAdd"):  # single operations
        ours = magnitude[op == list(OPERATIONS).index(name)]
        assert ks_distance(ours, np.array(drawn[TIMM_NAMES[name]])) < KS_LIMIT
    assert magnitude.max() == 10
    assert abs(chi_square(torch.from_numpy(np.bincount(2 * op[applied] + (sign[applied] > 0))[2:]))) < 4
    correlation = np.corrcoef(magnitude[:, :-1].ravel(), magnitude[:, 1:].ravel())[0, 1]  # of neighboring images
    assert abs(correlation) < 4 / math.sqrt(micro_batches * B)


def test_the_recipe_of_deit_is_a_function_of_the_key() -> None:
    """The same key gives equal results; the area outside of an image is filled with the mean, 0 when normalized."""
    images, labels = noise(32, 24, 24).permute(0, 2, 3, 1).contiguous(), torch.arange(32) % 10
    first, again, other = (augment(images, labels, DEIT, 10, key)[0] for key in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    outside = apply_ours(images[0].permute(2, 0, 1), "TranslateX", 10, 1)[:, :, 0]
    assert (outside == torch.tensor(MEAN, dtype=torch.uint8)[:, None]).all()
