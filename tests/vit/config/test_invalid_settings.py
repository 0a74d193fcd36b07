"""Invalid settings: one line that names the setting, the value and what is allowed."""

import re
from pathlib import Path

import pytest

from tests.helpers.paths import CONFIGS
from vit.config import own_files
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config
from vit.config.sections import AugmentConfig, ModelConfig, OptimConfig
from vit.config.user_error import UserError
from vit.config.yaml_text import read_text

DEMO = CONFIGS / "demo.yaml"


def error_message(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    """The one line that these arguments print to stderr; the exit code is 2."""
    with pytest.raises(SystemExit) as exited:
        parse_config(config_parser("vit"), [str(arg) for arg in args])
    assert exited.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"vit: .+\n", err), err
    return err


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("optim.lrr", "optim.lr"),
        ("model.widht", "model.width"),
        ("optimm.weight_decay", "optim.weight_decay"),
        ("epoch", "epochs"),
        ("global-batch", "global_batch"),
        ("lr", "optim.lr"),
    ],
)
def test_a_misspelled_setting_is_reported_with_the_nearest_known_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: str, suggestion: str
) -> None:
    """On the command line and in the file."""
    message = f"unknown setting '{wrong}'; did you mean '{suggestion}'?"
    assert message in error_message(capsys, "--config", DEMO, f"--{wrong}", "5")
    *sections, leaf = wrong.split(".")
    (tmp_path / "a.yaml").write_text("".join(f"{section}:\n  " for section in sections) + f"{leaf}: 5\n")
    assert message in error_message(capsys, "--config", tmp_path / "a.yaml")


def test_an_unknown_setting_without_a_similar_one_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says how to list the known ones."""
    assert "unknown setting 'xyzzy'  (--help lists all settings)" in error_message(
        capsys, "--config", DEMO, "--xyzzy", "1"
    )


def test_cuda_graphs_and_activation_checkpointing_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what else saves memory."""
    both = ("--cuda_graphs", "true", "--activation_checkpointing", "true")
    message = error_message(capsys, "--config", DEMO, *both)
    assert "cuda_graphs true requires activation_checkpointing false" in message
    assert "a smaller micro_batch saves memory, too" in message


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("optim.lr", "fast", ["optim.lr must be a number, not 'fast'", "peak learning rate"]),
        ("epochs", "1.5", ["epochs must be a whole number, not '1.5'"]),
        ("epochs", "true", ["epochs must be a whole number, not 'true'"]),
        ("compile", "maybe", ["compile must be true or false, not 'maybe'"]),
        ("model.pool", "max", ["model.pool must be cls or mean, not 'max'"]),
        ("data.crop_scale", "0.5", ["data.crop_scale must be a list of 2 numbers such as [0.08, 1], not '0.5'"]),
        ("data.crop_scale", "[0.5]", ["data.crop_scale must be a list of 2 numbers", "not '[0.5]'"]),
        ("seed", "-1", ["seed must be in 0 to", "-1"]),
        ("epochs", "0", ["epochs must be positive, not 0"]),
        ("global_batch", "100", ["micro_batch 384 does not divide global_batch 100"]),
        ("micro_batch", "-4", ["micro_batch must be positive, not -4"]),
        ("model.width", "100", ["model.heads 12 does not divide model.width 100"]),
        ("model.patch_size", "15", ["model.patch_size 15 does not divide model.image_size 224"]),
        ("model.depth", "0", ["model.depth must be positive, not 0"]),
        ("model.drop_path", "1", ["model.drop_path must be in [0, 1), not 1"]),
        ("optim.lr", "-1", ["optim.lr must be positive", "-1"]),
        ("optim.lr", ".nan", ["optim.lr must be positive", "nan"]),
        ("optim.lr", ".inf", ["optim.lr must be positive and finite", "inf"]),
        ("optim.loss", "mse", ["optim.loss must be cross-entropy or bce, not 'mse'"]),
        ("optim.optimizer", "sgd", ["optim.optimizer must be adamw, lamb or muon, not 'sgd'"]),
        ("optim.layer_decay", "0", ["optim.layer_decay must be in (0, 1], not 0"]),
        ("optim.warmup_lr", "-1", ["optim.warmup_lr must not be negative, not -1"]),
        ("model.layer_scale", "-1", ["model.layer_scale must not be negative, not -1"]),
        ("optim.eps", "-1", ["optim.eps must not be negative", "-1"]),
        ("optim.ema_decay", "1", ["optim.ema_decay must be in [0, 1), not 1"]),
        ("optim.warmup_epochs", "300", ["optim.warmup_epochs 300.0 must be less than epochs 300"]),
        ("data.crop_scale", "[0.5, 2]", ["data.crop_scale", "(0.5, 2.0)"]),
        ("data.crop_ratio", "[2, 1]", ["data.crop_ratio", "(2.0, 1.0)"]),
        ("data.val_crop", "0", ["data.val_crop must be in (0, 1], not 0"]),
        ("augment.flip", "2", ["augment.flip must be in [0, 1], not 2"]),
        ("augment.mixup", "-0.2", ["augment.mixup must not be negative, not -0.2"]),
        ("augment.randaugment", "autoaugment", ["augment.randaugment must be torchvision or timm, not 'autoaugment'"]),
        ("augment.randaugment_magnitude", "31", ["randaugment_magnitude must be in 0 to 30 for torchvision, not 31"]),
        ("augment.randaugment_deviation", "0.5", ["augment.randaugment_deviation requires augment.randaugment timm"]),
        ("data.interpolation", "nearest", ["data.interpolation must be bilinear or bicubic, not 'nearest'"]),
        ("augment.label_smoothing", "1", ["augment.label_smoothing must be in [0, 1), not 1"]),
        ("augment.std", "[1, 1, 0]", ["augment.std must be positive, not (1.0, 1.0, 0.0)"]),
        ("checkpoint.keep", "0", ["checkpoint.keep must be at least 1, not 0"]),
        ("checkpoint.every_minutes", "-1", ["checkpoint.every_minutes must not be negative, not -1"]),
        ("checkpoint.expected_failure_hours", "0", ["checkpoint.expected_failure_hours must be positive, not 0"]),
        ("log.every_steps", "0", ["log.every_steps must be at least 1, not 0"]),
    ],
)
def test_an_invalid_value_is_reported_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, value: str, words: list[str]
) -> None:
    """On the command line and in the file: the setting, the value and the allowed values, in one line."""
    (tmp_path / "empty.yaml").write_text("seed: 0\n")
    *sections, leaf = setting.split(".")
    (tmp_path / "wrong.yaml").write_text("".join(f"{section}:\n  " for section in sections) + f"{leaf}: {value}\n")
    for args in (["--config", tmp_path / "empty.yaml", f"--{setting}={value}"], ["--config", tmp_path / "wrong.yaml"]):
        message = error_message(capsys, *args)
        assert [word for word in words if word not in message] == [], message
        assert "<class" not in message and "typing." not in message


def test_label_smoothing_is_rejected_with_binary_cross_entropy() -> None:
    """It would make every class positive."""
    with pytest.raises(ValueError, match=r"optim\.loss bce requires augment\.label_smoothing 0, not 0\.1"):
        Config(optim=OptimConfig(loss="bce"), augment=AugmentConfig(label_smoothing=0.1))


@pytest.mark.parametrize("width", [4, 6, 10])
def test_sine_cosine_positions_require_a_width_with_at_least_two_frequencies(width: int) -> None:
    """Sine and cosine of x and y take four features per frequency; with a single frequency the formula divides by 0."""
    with pytest.raises(ValueError, match=rf"model\.width of 8, 12, …, not {width}"):
        ModelConfig(width=width, heads=2, positions="sincos2d")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [1\n", "line 1"),
        (b"epochs: 5\n bad: : x\n", "line 2"),
        (b"optim:\n\tlr: 1\n", "line 2"),
        (b"  seed: 1\nepochs: 2\n", "line 2, column 1: the line is not indented as those before it"),
        (b"seed: 1\n lr: 2\n", "line 2, column 4: a colon where none is expected"),
        (b"seed: 1\nepochs 5\n", "a line without a colon"),
        (b"log: {wandb_project: 'a}\n", "line 1: a quote that is not closed"),
        (b"seed: @x\n", "line 1, column 7: the value begins with a character that needs quotes"),
        (b"seed: 1\n---\nepochs: 2\n", "line 2, column 1: `---` begins a second document"),
        (b"se\0ed: 1\n", "line 1: the character 0x00 is not allowed"),
        (b"seed: !!python/object:os.system 1\n", "line 1: the tag !!python/object:os.system is not allowed"),
        (b"seed: 1\nepochs: 2\nseed: 3\n", "line 3: seed is already in line 1; remove one"),
        (b"optim:\n  lr: 1\nepochs: 5\noptim:\n  eps: 1\n", "line 4: optim is already in line 1; merge both"),
        (b"optim:\n  lr: 1\n  lr: 2\n", "line 3: optim.lr is already in line 2; remove one"),
        (b"optim.lr: 1\noptim:\n  lr: 2\n", "line 3: optim.lr is already set in"),
        (b"model: 5\n", "line 1: model must be a section of settings, not '5'"),
        (b"model: [1]\n", "line 1: model must be a section of settings, not a list"),
        (b"", "is empty; write lines such as `epochs: 90`"),
        (b"# nothing\n", "is empty; write lines such as `epochs: 90`"),
        (b"- seed: 1\n", "line 1: expected lines such as `epochs: 90`, not a list"),
        (b"seed=1\n", "write a colon instead of ="),
        (b"seed:1\n", "put a space after the colon"),
        (b"nodes: 2\n", "unknown setting 'nodes'"),
        (b"seed: 1 # \xe9\n", "not a text file in UTF-8 (byte 0xe9 in line 1)"),
        ("seed: 1\n".encode("utf-16"), "it seems to be UTF-16"),
        (b"hello\n", "hello"),
        (b"optim: 5\n", "optim"),
        (b"epochs: 5\nmodel:\n", "model"),
        (b"optim:\n  lr:\n", "optim.lr has no value"),
        (b"epochs: null\n", "epochs has no value"),
        (b"\xff\xfe\x00\x01", "UTF-8"),
    ],
)
def test_a_file_that_is_not_a_valid_config_is_rejected_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, words: str
) -> None:
    """Without a traceback; the message says where the error is."""
    (tmp_path / "a.yaml").write_bytes(content)
    assert words in error_message(capsys, "--config", tmp_path / "a.yaml")


def test_a_missing_file_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """So are a folder in place of a file, a missing --config, an option without a value and a stray argument."""
    assert str(tmp_path / "none.yaml") in error_message(capsys, "--config", tmp_path / "none.yaml")
    assert str(tmp_path) in error_message(capsys, "--config", tmp_path)
    assert "--config FILE is required" in error_message(capsys)
    assert "--optim.lr" in error_message(capsys, "--config", DEMO, "--optim.lr")
    assert "stray" in error_message(capsys, "--config", DEMO, "stray")


def test_a_misspelled_option_of_a_command_is_reported_as_it_must_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    parser = config_parser("vit.train", "Trains.")
    parser.add_argument("--run-dir")
    with pytest.raises(SystemExit):
        parse_config(parser, ["--config", str(DEMO), "--run_dir", "x"])
    assert "unknown setting 'run_dir'; did you mean 'run-dir'?" in capsys.readouterr().err


def test_a_recipe_of_an_installed_copy_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipes are not beside the package, as in a checkout, but inside of it."""
    monkeypatch.setattr(own_files, "CONFIGS", tmp_path / "vit" / "configs")
    own_files.CONFIGS.mkdir(parents=True)
    (own_files.CONFIGS / "my_recipe.yaml").touch()
    with pytest.raises(UserError, match=r"did you mean .*vit/configs/my_recipe\.yaml"):
        read_text("my_recipes.yaml", "--config")
