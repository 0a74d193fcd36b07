"""The values of a config: defaults, overrides, YAML, the recipe, and what is derived from them."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import CONFIGS, RUN_CONFIGS
from vit.config.parser import load_config
from vit.config.recipe import ADDED_LATER, recipe_of
from vit.config.schema import Config, flatten, to_yaml
from vit.config.sections import AugmentConfig, DataConfig, LogConfig, OptimConfig

DEMO = CONFIGS / "demo.yaml"


def other_value(name: str, value: Any) -> Any:
    """A valid value of a setting that differs from `value`."""
    special = {
        "micro_batch": 8,
        "model.image_size": 256,
        "model.patch_size": 32,
        "model.width": 24,
        "model.heads": 6,
        "model.pool": "mean",
        "model.positions": "sincos2d",
        "model.drop_path_rule": "uniform",
        "optim.loss": "bce",
        "optim.optimizer": "muon",
        "optim.decayed": "all",
        "optim.ema_warmup": "ramp",
        "augment.label_smoothing": 0.0,  # the default, which bce requires
        "data.decoder": "scaled",
        "data.interpolation": "bicubic",
        "data.small_images": "lanczos",
        "data.cache": "memory",
        "augment.randaugment": "timm",
        "augment.randaugment_magnitude": 7,
        "augment.erasing_fill": "mean",
        "data.stage": '$TMPDIR/s: "a" #1',
        "data.shuffle_window": 128,
        "data.on_bad": "skip",
        "data.verify": "never",
        "init_head": "new",
        "exact": "samples",
        "train_sizes": ((0.25, 64), (0.75, 256, 3)),
        "epochs_count": "pixels",
        "precision": "bf16",
        "device": "cpu",
        "checks.slow_rank_ratio": 1.5,
        "log.wandb": "offline",
        "data.crop_scale": (0.1, 1 / 3),
        "data.crop_ratio": (0.1, 1 / 3),
    }
    if name in special:
        return special[name]
    if isinstance(value, tuple):
        return tuple(v / 3 for v in value)
    if isinstance(value, str):
        return value + '\'s: "a" #1'
    return not value if isinstance(value, bool) else value + 16 if isinstance(value, int) else 1 / 3


def no_defaults() -> dict[str, Any]:
    """A value for every setting, none of them the default, except for label smoothing and CUDA graphs."""
    values = {name: other_value(name, value) for name, value in flatten(Config()).items()}
    return values | {"global_batch": 48, "cuda_graphs": False}  # with activation_checkpointing, it is not allowed


def test_a_config_written_to_yaml_is_read_back_unchanged(tmp_path: Path) -> None:
    """With values that are not the defaults: the config in a run folder is the one that was run."""
    values = no_defaults()
    overrides = [word for name, value in values.items() for word in (f"--{name}", argument(value))]
    cfg = load_config(DEMO, *overrides)
    assert flatten(cfg) == values
    unchanged = [name for name, value in flatten(Config()).items() if values[name] == value]
    assert unchanged == ["cuda_graphs", "augment.label_smoothing"]
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    assert load_config(tmp_path / "config.yaml") == Config()


def argument(value: Any) -> str:
    """The value as a command-line argument."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


def test_the_command_line_overrides_the_file_which_overrides_the_defaults() -> None:
    """Both `--key value` and `--key=value`; `1e-3` is parsed as a number."""
    cfg = load_config(
        DEMO, "--optim.lr", "1e-3", "--model.depth=2", "--data.crop_scale", "[0.25, 1]", "--compile", "true"
    )
    assert (cfg.optim.lr, cfg.model.depth, cfg.data.crop_scale, cfg.compile) == (1e-3, 2, (0.25, 1.0), True)
    assert (cfg.optim.beta2, cfg.model.width) == (0.98, 64)  # from the file
    assert (cfg.optim.beta1, cfg.augment.flip) == (0.9, 0.5)  # defaults
    assert isinstance(cfg.data.train, Path)


def test_the_recipe_has_every_setting_that_affects_the_result() -> None:
    """All but paths, threads, device, intervals and timeouts, which may change when a run is resumed."""
    free = {
        *("data.train", "data.val", "data.workers", "data.prefetch", "device", "timeout_minutes"),
        *("data.cache", "data.on_bad", "data.verify", "data.stage", "optim.max_skipped", "activation_checkpointing"),
        *("cuda_graphs", "checkpoint.every_minutes", "checkpoint.expected_failure_hours"),
        *("checkpoint.keep", "checkpoint.keep_every_epochs"),
        *("checks.checksum_every_steps", "checks.recompute_every_steps"),
        *("checks.slow_rank_ratio", "checks.slow_rank_seconds"),
        *("log.every_steps", "log.eval_every_epochs", "log.samples", "log.wandb", "log.wandb_project"),
    }
    absent = set(ADDED_LATER)  # at their defaults, as in older versions
    assert flatten(Config()).keys() - recipe_of(Config()).keys() == free | absent
    others = Config(
        train_sizes=((1, 224),),
        epochs_count="pixels",
        data=DataConfig(small_images="lanczos"),
        augment=AugmentConfig(randaugment_ramp=True),
        optim=OptimConfig(optimizer="muon", momentum=0.9),
    )
    assert recipe_of(others).keys() >= absent
    for path in RUN_CONFIGS:
        values = recipe_of(load_config(path))
        assert json.loads(json.dumps(values)) == values  # a checkpoint stores it as JSON


def test_the_number_of_steps_is_the_smallest_that_uses_each_sample_often_enough() -> None:
    """Less than one batch too many, for any sizes and for fractions of an epoch."""
    for batch in (1, 7, 64, 1536):
        cfg = Config(global_batch=batch, micro_batch=batch)
        for samples in (1, 63, 64, 65, 60_000, 1_281_167):
            for epochs in (0.5, 1, 5, 300):
                steps = cfg.steps(epochs, samples)
                assert isinstance(steps, int)
                assert (steps - 1) * batch < epochs * samples <= steps * batch
    assert Config().steps(300, 1_281_167) == math.ceil(300 * 1_281_167 / 1536) == 250_228
    assert Config().steps(0, 60_000) == 0


def test_a_config_is_immutable() -> None:
    """Every section is frozen; a modified copy is validated again."""
    cfg = Config()
    for section in (cfg, cfg.model, cfg.data, cfg.augment, cfg.optim, cfg.checkpoint, cfg.checks, cfg.log):
        with pytest.raises(AttributeError):
            setattr(section, fields(section)[0].name, 1)
    with pytest.raises(ValueError, match="every_steps"):
        replace(LogConfig(), every_steps=0)
