"""RandAugment as DeiT uses it, timm's `rand-m9-mstd0.5-inc1`: its operations, magnitudes and frequencies.

Where timm's operations are Pillow's, pixels may differ by as much as the two libraries round differently.  Two
differences are wider: timm resamples with a bicubic filter, ours is bilinear, and Pillow does not blend the image's
border with the color around it.
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

from tests.vit.augment.test_augment import chi_square, generator, ks_distance, noise, photographs
from vit.augment import randaugment
from vit.augment.pipeline import augment
from vit.augment.randaugment import OPERATIONS, TIMMS
from vit.config.schema import AugmentConfig

MEAN = (124, 116, 104)  # what DeiT fills with
THEIRS = {  # ours to timm's
    name: name + {"TranslateX": "Rel", "TranslateY": "Rel"}.get(name, "") for name in TIMMS
} | {name: f"{name}Increasing" for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")}
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
DEIT = AugmentConfig(randaugment="timm", randaugment_ops=2, randaugment_magnitude=9, randaugment_deviation=0.5)


def amount(name: str, magnitude: float, sign: int, H: int = 40, W: int = 56) -> float:
    op = np.array([list(OPERATIONS).index(name)])
    return float(randaugment.timms_amounts(op, np.array([magnitude]), np.array([sign]), H, W)[0])


def timms(name: str, magnitude: float, sign: int) -> tuple[Any, ...]:
    """The arguments that timm gives its operation."""
    level = timm.LEVEL_TO_ARG[THEIRS[name]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "_randomly_negate", lambda value: value * sign)
        return () if level is None else level(magnitude, {})


def test_the_operations_are_timms() -> None:
    """The 15 that increase in strength with the magnitude."""
    assert {THEIRS[name] for name in TIMMS} == set(timm._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("name", TIMMS)
def test_an_amount_is_timms_at_every_magnitude_and_sign(name: str) -> None:
    """In pixels, degrees, levels and bits; a factor is a distance from 1, and shifts are the other way around."""
    for magnitude in np.linspace(0, 10, 81).tolist():
        for sign in (-1, 1):
            ours, theirs = amount(name, magnitude, sign), timms(name, magnitude, sign)
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


def theirs(image: Tensor, name: str, magnitude: float, sign: int, resample: Image.Resampling) -> Tensor:
    """One operation by timm: (3, H, W) uint8 -> the same."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    values = timms(name, magnitude, -sign if name.startswith("Translate") else sign)
    out = timm.NAME_TO_OP[THEIRS[name]](picture, *values, fillcolor=MEAN, resample=resample)
    return torch.from_numpy(np.array(out)).permute(2, 0, 1)


def ours(image: Tensor, name: str, magnitude: float, sign: int) -> Tensor:
    op, value = np.array([list(OPERATIONS).index(name)]), np.array([amount(name, magnitude, sign, *image.shape[1:])])
    return randaugment.apply(image[None].clone(), op, value, MEAN)[0]


@pytest.mark.parametrize("name", TIMMS)
def test_an_operation_gives_timms_pixels_at_every_magnitude_and_sign(name: str) -> None:
    """Exactly where both look up the same table; else within a level or two; bilinear, and within the image."""
    exact = ("Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")
    moved = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
    bound = 0 if name in exact else 2 if name in ("Contrast", "Color") else 1
    for image in (*photographs(2, 64, 64), *noise(1, 40, 56)):
        for magnitude in (0, 3, 7.3, 9, 9.5, 10 if name != "Posterize" else 9.9):  # newer Pillows keep a bit at least
            for sign in (-1, 1) if name in SIGNED else (1,):
                reference = theirs(image, name, magnitude, sign, Image.Resampling.BILINEAR)
                difference = (ours(image, name, magnitude, sign).int() - reference.int()).abs()
                if name in moved:  # but for the border, where one of them blends with the color around the image
                    inside = (
                        theirs(torch.full_like(image, 255), name, magnitude, sign, Image.Resampling.BILINEAR) == 255
                    )
                    inside &= ours(torch.full_like(image, 255), name, magnitude, sign) == 255
                    assert inside.float().mean() > 0.3
                    difference = difference[inside]
                assert difference.max() <= bound, (magnitude, sign, int(difference.max()))


def test_magnitudes_signs_and_operations_are_distributed_as_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each operation that is done: how often, and at which magnitude, clipped at 10; half of them are not done."""
    drawn: dict[str, list[float]] = {name: [] for name in THEIRS.values()}
    for name in THEIRS.values():
        monkeypatch.setitem(timm.LEVEL_TO_ARG, name, lambda level, _, name=name: drawn[name].append(level) or ())
        monkeypatch.setitem(timm.NAME_TO_OP, name, lambda image, **_: image)
    reference = timm.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    python_random.seed(0), np.random.seed(0)
    micro_batches, B = 400, 64
    for _ in range(micro_batches * B // 2):
        reference(None)
    op, magnitude, sign = (np.stack(values) for values in zip(*[
        randaugment.draw_timms(B, 9, 0.5, generator(key)) for key in range(micro_batches)
    ], strict=True))  # fmt: skip
    done = op != list(OPERATIONS).index("Identity")
    for mine in (done.mean(), sum(map(len, drawn.values())) / (micro_batches * B)):
        assert abs(mine - 0.5) < 4 * 0.5 / math.sqrt(micro_batches * B)
    count = np.bincount(op[done], minlength=len(OPERATIONS))[1:]
    assert abs(chi_square(torch.from_numpy(count))) < 4
    assert abs(chi_square(torch.tensor([len(levels) for levels in drawn.values()]))) < 4
    assert ks_distance(magnitude[done], np.concatenate(list(drawn.values()))) < 1.95
    for name in ("ShearX", "Equalize", "SolarizeAdd"):  # of each operation by itself, and both signs
        mine = magnitude[op == list(OPERATIONS).index(name)]
        assert ks_distance(mine, np.array(drawn[THEIRS[name]])) < 1.95
    assert magnitude.max() == 10
    assert abs(chi_square(torch.from_numpy(np.bincount(2 * op[done] + (sign[done] > 0))[2:]))) < 4
    assert abs(np.corrcoef(magnitude[:, :-1].ravel(), magnitude[:, 1:].ravel())[0, 1]) < 4 / math.sqrt(
        micro_batches * B
    )


def test_deits_recipe_is_a_function_of_the_key() -> None:
    """The same key, the same bits; and what is moved in from outside is the mean, which is 0 once normalized."""
    images, labels = noise(32, 24, 24).permute(0, 2, 3, 1).contiguous(), torch.arange(32) % 10
    first, again, other = (augment(images, labels, DEIT, 10, key)[0] for key in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    outside = ours(images[0].permute(2, 0, 1), "TranslateX", 10, 1)[:, :, 0]
    assert (outside == torch.tensor(MEAN, dtype=torch.uint8)[:, None]).all()
