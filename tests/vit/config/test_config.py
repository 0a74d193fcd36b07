"""A run's settings: the published recipe, and one clear line for whoever mistypes one."""

import ast
import json
import math
import re
import shlex
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from tests.helpers.paths import ROOT
from vit.checkpoint.train_state import TrainState
from vit.config import schema
from vit.config.parser import config_parser, load_config, parse_config
from vit.config.schema import AugmentConfig, Config, LogConfig, ModelConfig, OptimConfig, flatten, recipe, to_yaml
from vit.model.vision_transformer import VisionTransformer

CONFIGS = sorted({*(ROOT / "configs").glob("*.yaml")} - {ROOT / "configs" / "imagenet.yaml"})  # which is no run
DEMO = ROOT / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_makes_a_model_that_can_be_trained(path: Path) -> None:
    """It loads, and its model is built: on the meta device, and where it is small with optimizer and all."""
    cfg = load_config(path)
    with torch.device("meta"):
        model = VisionTransformer(cfg.model)
    weights = sum(p.numel() for p in model.parameters())
    assert weights > 0
    if weights < 10_000_000:
        state = TrainState.fresh(cfg, torch.device("cpu"))
        logits = state.model(torch.zeros(2, 3, cfg.model.image_size, cfg.model.image_size))
        assert logits.shape == (2, cfg.model.num_classes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_says_how_it_is_run_what_it_takes_and_where_it_is_from(path: Path) -> None:
    """Three lines of comment, of which the first is a command that the submitter takes, on ranks that fit."""
    lines = path.read_text().splitlines()
    assert all(line.startswith("# ") for line in lines[:3])
    assert not lines[3].startswith("#")
    python, script, *options = shlex.split(lines[0].removeprefix("# "))
    assert (python, script) == ("python", "jobs/submit.py")
    assert (ROOT / options[options.index("--config") + 1]).samefile(path)
    preview = subprocess.run(
        [sys.executable, script, *options, "--cluster", "slurm", "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert preview.returncode == 0, preview.stderr


def test_no_two_configs_are_the_same_run() -> None:
    """Or one of them is a copy that says something else at its head."""
    recipes = {
        path.name: json.dumps(recipe(load_config(path)) | {"data": str(load_config(path).data.train)})
        for path in CONFIGS
    }
    assert len(set(recipes.values())) == len(recipes), recipes.keys()


def test_vit_b16_is_the_published_recipe() -> None:
    """300 epochs of ViT-B/16 at 224 pixels, on 4 times 384 images a step: every value of it, and the defaults else."""
    cfg = load_config(ROOT / "configs" / "vit_b16.yaml")
    assert cfg.model == ModelConfig(
        image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp_dim=3072, num_classes=1000,
        pool="cls", positions="learned", dropout=0.0, attention_dropout=0.0, drop_path=0.0,
    )  # fmt: skip
    assert (cfg.epochs, cfg.global_batch, cfg.micro_batch, cfg.micro_batches) == (300, 4 * 384, 384, 4)
    assert cfg.optim == OptimConfig(
        lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8,
        warmup_epochs=30, final_lr=0.0, clip_norm=1.0, ema_decay=0.0,
    )  # fmt: skip
    assert cfg.augment == AugmentConfig(
        flip=0.5, randaugment_ops=2, randaugment_magnitude=9, mixup=0.2, cutmix=1.0, label_smoothing=0.1,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    assert (cfg.data.crop_scale, cfg.data.crop_ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))


def other(name: str, value: Any) -> Any:
    """Another valid value of a setting."""
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
        "optim.optimizer": "lamb",
        "optim.decayed": "all",
        "optim.ema_warmup": "ramp",
        "augment.label_smoothing": 0.0,  # the default: bce wants it
        "data.decoder": "scaled",
        "data.interpolation": "bicubic",
        "data.cache": "memory",
        "augment.randaugment": "timm",
        "augment.randaugment_magnitude": 7,
        "augment.erasing_fill": "mean",
        "data.stage": '$TMPDIR/s: "a" #1',
        "data.shuffle_window": 128,
        "data.on_bad": "skip",
        "data.verify": "never",
        "exact": "samples",
        "precision": "bf16",
        "device": "cpu",
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


def everything_else() -> dict[str, Any]:
    """A value for every setting, none of them the default."""
    return {name: other(name, value) for name, value in flatten(Config()).items()} | {"global_batch": 48}


def test_a_config_written_to_yaml_is_read_back_the_same(tmp_path: Path) -> None:
    """Every setting with a value that is not the default: what a run folder keeps is what was run."""
    values = everything_else()
    overrides = [word for name, value in values.items() for word in (f"--{name}", shown(value))]
    cfg = load_config(DEMO, *overrides)
    assert flatten(cfg) == values
    assert [name for name, value in flatten(Config()).items() if values[name] == value] == ["augment.label_smoothing"]
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_config(tmp_path / "config.yaml") == cfg
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    assert load_config(tmp_path / "config.yaml") == Config()


def shown(value: Any) -> str:
    """As on the command line."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


def test_the_command_line_overrides_the_file_and_the_file_the_defaults() -> None:
    """`1e-3` is a number, and so is `0.02` after an equals sign."""
    cfg = load_config(
        DEMO, "--optim.lr", "1e-3", "--model.depth=2", "--data.crop_scale", "[0.25, 1]", "--compile", "true"
    )
    assert (cfg.optim.lr, cfg.model.depth, cfg.data.crop_scale, cfg.compile) == (1e-3, 2, (0.25, 1.0), True)
    assert (cfg.optim.beta2, cfg.model.width) == (0.98, 64)  # the file's
    assert (cfg.optim.beta1, cfg.augment.flip) == (0.9, 0.5)  # the defaults
    assert isinstance(cfg.data.train, Path)


def complaint(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    """What a person sees who gives these arguments: one line, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        parse_config(config_parser("vit"), [str(arg) for arg in args])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"vit: .+\n", err), err
    return err


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("optim.lrr", "optim.lr"),
        ("model.widht", "model.width"),
        ("optimm.weight_decay", "optim.weight_decay"),
        ("epoch", "epochs"),
        ("global-batch", "global_batch"),
        ("lr", "optim.lr"),
    ],
)
def test_a_misspelt_setting_is_named_with_the_one_that_was_meant(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: str, meant: str
) -> None:
    """On the command line and in the file alike."""
    answer = f"unknown setting '{wrong}'; did you mean '{meant}'?"
    assert answer in complaint(capsys, "--config", DEMO, f"--{wrong}", "5")
    *rooms, leaf = wrong.split(".")
    (tmp_path / "a.yaml").write_text("".join(f"{room}:\n  " for room in rooms) + f"{leaf}: 5\n")
    assert answer in complaint(capsys, "--config", tmp_path / "a.yaml")


def test_a_setting_that_is_like_no_other_is_named_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """With the way to find the known ones."""
    assert "unknown setting 'xyzzy'  (--help lists all)" in complaint(capsys, "--config", DEMO, "--xyzzy", "1")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("optim.lr", "fast", ["optim.lr", "float", "fast"]),
        ("epochs", "1.5", ["epochs", "int", "1.5"]),
        ("epochs", "true", ["epochs", "int", "True"]),
        ("compile", "maybe", ["compile", "bool", "maybe"]),
        ("model.pool", "max", ["model.pool", "'cls', 'mean'", "max"]),
        ("data.crop_scale", "0.5", ["data.crop_scale", "tuple", "0.5"]),
        ("data.crop_scale", "[0.5]", ["data.crop_scale", "2 elements", "[0.5]"]),
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
        ("optim.loss", "mse", ["optim.loss", "'cross-entropy', 'bce'", "mse"]),
        ("optim.optimizer", "sgd", ["optim.optimizer", "'adamw', 'lamb'", "sgd"]),
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
        ("augment.randaugment", "autoaugment", ["augment.randaugment", "'torchvision', 'timm'", "autoaugment"]),
        ("augment.randaugment_magnitude", "31", ["randaugment_magnitude must be in 0 to 30 for torchvision's, not 31"]),
        ("augment.randaugment_deviation", "0.5", ["augment.randaugment_deviation needs augment.randaugment timm"]),
        ("data.interpolation", "nearest", ["data.interpolation", "'bilinear', 'bicubic'", "nearest"]),
        ("augment.label_smoothing", "1", ["augment.label_smoothing must be in [0, 1), not 1"]),
        ("augment.std", "[1, 1, 0]", ["augment.std must be positive, not (1.0, 1.0, 0.0)"]),
        ("checkpoint.keep", "0", ["checkpoint.keep must be at least 1, not 0"]),
        ("checkpoint.every_minutes", "-1", ["checkpoint.every_minutes must not be negative, not -1"]),
        ("checkpoint.expected_failure_hours", "0", ["checkpoint.expected_failure_hours must be positive, not 0"]),
        ("log.every_steps", "0", ["log.every_steps must be at least 1, not 0"]),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str, value: str, words: list[str]
) -> None:
    """On the command line and in the file: the setting, the value and what it must be, in one line."""
    (tmp_path / "empty.yaml").write_text("seed: 0\n")
    *rooms, leaf = setting.split(".")
    (tmp_path / "wrong.yaml").write_text("".join(f"{room}:\n  " for room in rooms) + f"{leaf}: {value}\n")
    for args in (["--config", tmp_path / "empty.yaml", f"--{setting}={value}"], ["--config", tmp_path / "wrong.yaml"]):
        said = complaint(capsys, *args)
        assert [word for word in words if word not in said] == [], said
        assert "<class" not in said and "typing." not in said


def test_label_smoothing_would_make_every_class_a_right_one_for_bce() -> None:
    """So the two together are refused."""
    with pytest.raises(ValueError, match=r"optim\.loss bce wants augment\.label_smoothing 0, not 0\.1"):
        Config(optim=OptimConfig(loss="bce"), augment=AugmentConfig(label_smoothing=0.1))


@pytest.mark.parametrize("width", [4, 6, 10])
def test_fixed_positions_want_a_width_that_has_frequencies(width: int) -> None:
    """Sines and cosines of x and y: four of each at least, or the formula divides by zero."""
    with pytest.raises(ValueError, match=rf"model\.width of 8, 12, …; not {width}"):
        ModelConfig(width=width, heads=2, positions="sincos2d")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"epochs: [1\n", "line 1"),
        (b"epochs: 5\n bad: : x\n", "line 2"),
        (b"optim:\n\tlr: 1\n", "line 2"),
        (b"hello\n", "hello"),
        (b"optim: 5\n", "optim"),
        (b"epochs: 5\nmodel:\n", "model"),
        (b"optim:\n  lr:\n", "optim.lr has no value"),
        (b"epochs: null\n", "epochs has no value"),
        (b"\xff\xfe\x00\x01", "utf-8"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, words: str
) -> None:
    """No traceback: where the file is wrong, or what it is not."""
    (tmp_path / "a.yaml").write_bytes(content)
    assert words in complaint(capsys, "--config", tmp_path / "a.yaml")


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And so is an option that lacks its value, and a folder in place of a file."""
    assert str(tmp_path / "none.yaml") in complaint(capsys, "--config", tmp_path / "none.yaml")
    assert str(tmp_path) in complaint(capsys, "--config", tmp_path)
    assert "--config FILE is required" in complaint(capsys)
    assert "--optim.lr" in complaint(capsys, "--config", DEMO, "--optim.lr")
    assert "stray" in complaint(capsys, "--config", DEMO, "stray")


def every_setting(room: type = Config, prefix: str = "") -> list[tuple[str, str, Any]]:
    """Name, comment and default of every setting, read from the source with other eyes than the parser's."""
    tree = ast.parse(Path(schema.__file__).read_text())
    lines = Path(schema.__file__).read_text().splitlines()
    definition = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == room.__name__)
    hints, defaults, out = get_type_hints(room), room(), []
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            if is_dataclass(hints[name]):
                out += every_setting(hints[name], f"{prefix}{name}.")
            else:
                comment = lines[node.lineno - 1].partition("  # ")[2]
                out.append((prefix + name, comment, getattr(defaults, name)))
    return out


def test_the_help_shows_every_setting_with_its_meaning_and_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comment behind the field in the source is the help text, so there is one of each, and choices are listed."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        parse_config(config_parser("vit"), ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    entries = dict(re.findall(r"^  --([\w.]+) VALUE((?:.*\n)(?: {10,}.*\n)*)", said, re.MULTILINE))
    assert entries.keys() == {name for name, _, _ in every_setting()} == flatten(Config()).keys()
    for name, comment, default in every_setting():
        text = "".join(entries[name].split())
        assert len(comment) > 5, f"{name} has no comment"
        assert "".join(comment.split()) in text, name
        if isinstance(default, tuple):
            assert text.endswith("])") and f"default:[{default[0]:.4g}," in text, name
        elif default == "":
            assert text.endswith("".join(comment.split())), name
        else:
            assert text.endswith(f"default:{str(default).lower() if isinstance(default, bool) else default})"), name
    assert "(cls|mean;default:cls)" in "".join(entries["model.pool"].split())


def test_the_recipe_is_every_value_that_decides_what_is_computed() -> None:
    """Left out are paths, threads, device, cadence and patience, nothing else: changing those refuses no resume."""
    free = {
        *("data.train", "data.val", "data.workers", "data.prefetch", "device", "timeout_minutes"),
        *("data.cache", "data.on_bad", "data.verify", "data.stage", "optim.max_skipped"),
        *("checkpoint.every_minutes", "checkpoint.expected_failure_hours"),
        *("checkpoint.keep", "checkpoint.keep_every_epochs"),
        *("log.every_steps", "log.eval_every_epochs", "log.samples", "log.wandb", "log.wandb_project"),
    }
    assert flatten(Config()).keys() - recipe(Config()).keys() == free
    for path in CONFIGS:
        assert json.loads(json.dumps(recipe(load_config(path)))) == recipe(
            load_config(path)
        )  # as a checkpoint holds it


def test_a_batch_has_a_whole_number_of_steps_that_use_each_sample_as_often_as_asked() -> None:
    """No image more than a batch over, none left out, whatever the sizes; fractions of an epoch too."""
    for batch in (1, 7, 64, 1536):
        cfg = Config(global_batch=batch, micro_batch=batch)
        for samples in (1, 63, 64, 65, 60_000, 1_281_167):
            for epochs in (0.5, 1, 5, 300):
                steps = cfg.steps(epochs, samples)
                assert isinstance(steps, int)
                assert (steps - 1) * batch < epochs * samples <= steps * batch
    assert Config().steps(300, 1_281_167) == math.ceil(300 * 1_281_167 / 1536) == 250_228
    assert Config().steps(0, 60_000) == 0


def test_ranks_that_do_not_divide_the_micro_batches_are_told_which_do() -> None:
    """The numbers that are allowed, all of them, and what they come from."""
    cfg = Config(global_batch=1536, micro_batch=128)  # 12 micro-batches
    for ranks in (1, 2, 3, 4, 6, 12):
        cfg.check_ranks(ranks)
    for ranks in (5, 8, 24):
        with pytest.raises(
            ValueError, match=rf"^{ranks} ranks .* 12 micro-batches .* use 1, 2, 3, 4, 6, 12 ranks or another"
        ):
            cfg.check_ranks(ranks)
    with pytest.raises(ValueError, match=r"global_batch 1536 / micro_batch 128"):
        cfg.check_ranks(7)


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    """Every room is frozen; a changed copy is checked again."""
    cfg = Config()
    for room in (cfg, cfg.model, cfg.data, cfg.augment, cfg.optim, cfg.checkpoint, cfg.log):
        with pytest.raises(AttributeError):
            setattr(room, fields(room)[0].name, 1)
    with pytest.raises(ValueError, match="every_steps"):
        replace(LogConfig(), every_steps=0)


@pytest.mark.parametrize(
    "names", ["vit.config, vit.run.folder, vit.run.metrics, vit.data.dataset_manifest", "jobs.submit"]
)
def test_a_login_node_imports_neither_torch_nor_numpy(names: str) -> None:
    """In a process of its own, with everything that these modules pull in."""
    program = f"import sys, {names}; print([m for m in ('torch', 'numpy', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_at_once_and_without_torch() -> None:
    """`python jobs/submit.py --help` in less than a second, the best of three; -X importtime lists what it imports."""
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "jobs/submit.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        best = min(best, time.perf_counter() - start)
        assert "--config" in done.stdout
    assert best < 1
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "jobs/submit.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in listed.splitlines()}
    assert "jsonargparse" in imported
    assert not imported & {"torch", "numpy"}
