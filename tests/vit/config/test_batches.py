"""A number of ranks that does not divide a batch is refused with the settings that work."""

import re
from dataclasses import replace

import pytest

from tests.helpers.paths import CONFIGS
from vit.config.parser import load_config
from vit.config.schema import Config
from vit.config.sections import AugmentConfig, DataConfig
from vit.config.user_error import UserError


def refusal(cfg: Config, ranks: int) -> str:
    with pytest.raises(UserError) as error:
        cfg.check_ranks(ranks)
    return str(error.value)


def test_vit_b16_on_eight_gpus_is_refused_with_the_micro_batch_that_works() -> None:
    """And the numbers of ranks that work without it; another micro-batch is another recipe, which the message says."""
    cfg = load_config(CONFIGS / "vit_b16.yaml")
    assert refusal(cfg, 8) == (
        "8 ranks do not divide the 4 micro-batches of a batch (global_batch 1536 / micro_batch 384); "
        "use 1, 2 or 4 ranks, or --micro_batch 192 for 8 ranks (another recipe: it changes the bits of the run)"
    )
    replace(cfg, micro_batch=192).check_ranks(8)
    for ranks in (1, 2, 4):
        cfg.check_ranks(ranks)


def test_every_number_of_ranks_that_works_is_listed() -> None:
    """In the grammar of one and of several."""
    cfg = Config(global_batch=1536, micro_batch=128)  # 12 micro-batches
    for ranks in (1, 2, 3, 4, 6, 12):
        cfg.check_ranks(ranks)
    assert "12 micro-batches of a batch (global_batch 1536 / micro_batch 128); use 1, 2, 3, 4, 6 or 12 ranks, or " in (
        refusal(cfg, 8)
    )
    whole = Config(global_batch=128, micro_batch=128)
    assert "the 1 micro-batch of a batch (global_batch 128 / micro_batch 128); use 1 rank, or --micro_batch 64 " in (
        refusal(whole, 2)
    )


@pytest.mark.parametrize("mixup", [0.0, 0.8])
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_settings_that_a_refusal_names_work(mixup: float, repeats: int) -> None:
    """The largest micro-batch that divides and that mixup can mix; if there is none, a similar global batch."""
    refused = 0
    for batch, micro in ((1536, 384), (128, 32), (96, 96), (1000, 25), (64, 2)):
        cfg = Config(
            global_batch=batch,
            micro_batch=micro,
            augment=AugmentConfig(mixup=mixup),
            data=DataConfig(repeats=repeats),
        )
        for ranks in (r for r in (2, 3, 5, 7, 8, 16, 64) if cfg.micro_batches % r):
            text = refusal(cfg, ranks)
            names = {name: int(value) for name, value in re.findall(r"--(\w+) (\d+)", text)}
            if not names:
                assert text.endswith(f"or a larger global_batch for {ranks} ranks")
                continue
            refused += 1
            working = replace(cfg, **names)
            working.check_ranks(ranks)
            working.check_mixing()
            assert working.micro_batch <= micro and 0.4 < working.global_batch / batch < 2
            if "global_batch" in names:
                assert f"for {ranks} ranks (they cannot share {batch} images equally)" in text
                continue
            larger = [m for m in range(working.micro_batch + 1, micro + 1) if batch % m == 0]
            assert all(batch // m % ranks for m in larger)
    assert refused > 15
