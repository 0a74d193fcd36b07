"""What weights tell about the settings that they were trained with, and what happens if they cannot be read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from tests.helpers.data_sets import CLASSES
from tests.helpers.finished_runs import make_finished_run
from tests.helpers.models import SMALL, torchvision_model
from tests.helpers.paths import CONFIGS
from vit import export
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.initial_settings import InitialSettings, WeightSettings
from vit.checkpoint.stored_settings import of_config
from vit.config.parser import config_parser, load_config, parse_config
from vit.config.schema import Config, to_yaml
from vit.config.sections import ModelConfig
from vit.config.user_error import UserError
from vit.data.dataset_manifest import manifest_path
from vit.run.folder import RunFolder

S16 = ModelConfig(width=128, depth=1, heads=2, mlp_dim=512)  # as ViT-S/16: 224 pixels, 64 features per head
IMAGENET, HALF = load_config(CONFIGS / "finetune.yaml").augment.mean, (0.5, 0.5, 0.5)


def read(source: Path, train: Path, *options: object, run: Path | None = None) -> Config:
    """configs/finetune.yaml from these weights."""
    parser = config_parser("vit")
    parser.exits = False
    settings = InitialSettings(lambda _: RunFolder(run) if run else None)
    words = ["--config", CONFIGS / "finetune.yaml", "--init_from", source, "--data.train", train, *options]
    return parse_config(parser, [str(word) for word in words], settings)[0]


def taken(source: Path, train: Path, *options: object) -> ModelConfig:
    """The model, without what it does not take from its weights."""
    return replace(read(source, train, *options).model, num_classes=1000, drop_path=0.0)


def timm_model(**options: object) -> torch.nn.Module:
    shape = {"img_size": 224, "embed_dim": S16.width, "depth": S16.depth, "num_heads": S16.heads}
    return timm.models.VisionTransformer(**shape | options)


def test_a_file_alone_shows_the_architecture(jpegs: Path, tmp_path: Path) -> None:
    """torchvision's, timm's, and DeiT-III's, which has layer scale and no position for the class token."""
    torch.save(torchvision_model(S16).state_dict(), tmp_path / "torchvision.pth")
    assert taken(tmp_path / "torchvision.pth", jpegs) == S16
    for size, patch in ((192, 16), (32, 8)):
        model = timm_model(img_size=size, patch_size=patch, class_token=False, global_pool="avg", fc_norm=False)
        safetensors.torch.save_file(model.state_dict(), tmp_path / "timm.safetensors")
        expected = replace(S16, image_size=size, patch_size=patch, pool="mean")
        assert taken(tmp_path / "timm.safetensors", jpegs) == expected
    torch.save({"model": timm_model(no_embed_class=True, init_values=0.1).state_dict()}, tmp_path / "deit3.pth")
    assert taken(tmp_path / "deit3.pth", jpegs) == replace(S16, layer_scale=1e-5)


def test_the_number_of_heads_is_assumed_to_be_that_of_64_features_each(jpegs: Path, tmp_path: Path) -> None:
    """The line that is printed says so; another number can be given, and must be if the width is not a multiple."""
    torch.save(torchvision_model(replace(S16, heads=4)).state_dict(), tmp_path / "vit.pth")
    settings = InitialSettings()
    words = ["--config", str(CONFIGS / "finetune.yaml"), "--init_from", str(tmp_path / "vit.pth")]
    parse_config(config_parser("vit"), [*words, "--data.train", str(jpegs)], settings)
    assert "heads 2 (of 64 features each, which is assumed)" in settings.lines[0]
    assert taken(tmp_path / "vit.pth", jpegs, "--model.heads", 4).heads == 4
    torch.save(torchvision_model(SMALL).state_dict(), tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"small\.pth does not show model\.heads; give --model\.heads VALUE$"):
        taken(tmp_path / "small.pth", jpegs)
    assert taken(tmp_path / "small.pth", jpegs, "--model.heads", 4) == replace(SMALL, num_classes=1000)


def test_a_folder_of_timm_tells_its_heads_and_its_input(jpegs: Path, tmp_path: Path) -> None:
    """As the Hugging Face Hub has them; the size is that of the positions in the file, if they are learned."""
    safetensors.torch.save_file(timm_model(img_size=32, num_heads=4).state_dict(), tmp_path / "model.safetensors")
    pretrained = {"input_size": [3, 224, 224], "mean": HALF, "std": HALF, "interpolation": "bicubic", "crop_pct": 0.9}
    config = {"architecture": "vit_small_patch16_224", "num_classes": 1000, "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_args": {"num_heads": 4}}))
    cfg = read(tmp_path, jpegs)
    assert (cfg.model.image_size, cfg.model.heads) == (32, 4)
    assert (cfg.augment.mean, cfg.augment.std, cfg.data.interpolation) == (HALF, HALF, "bicubic")
    assert cfg.data.val_crop == 0.875
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read(tmp_path, jpegs).model.heads == 2  # the rule
    (tmp_path / "config.json").unlink()
    assert read(tmp_path, jpegs).augment.mean == IMAGENET
    for content in ("{", "[]", '{"pretrained_cfg": {"mean": [1]}}', '{"model_args": {"num_heads": "two"}}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"^init_from: .*config\.json is damaged \(.*; copy the folder again$"):
            read(tmp_path, jpegs)


def test_what_was_exported_has_the_settings_of_its_run(jpegs: Path, tmp_path: Path) -> None:
    """Safetensors all of them; timm's format has fixed positions as learned ones."""
    demo = load_config(CONFIGS / "demo.yaml", "--model.depth", "1")
    make_finished_run(tmp_path / "demo", demo)
    expected = replace(demo.model, num_classes=1000)
    for to, positions in (("safetensors", "sincos2d"), ("timm", "learned")):
        exported = read(export.export(tmp_path / "demo", to), jpegs)
        model = replace(exported.model, num_classes=1000, drop_path=0.0)
        assert (model, exported.augment.mean) == (replace(expected, positions=positions), demo.augment.mean)
    bare = safetensors.torch.load_file(tmp_path / "demo" / "demo.safetensors")
    del bare["positions"]
    safetensors.torch.save_file(bare, tmp_path / "bare.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"does not show model\.image_size; give --model\.image_size VALUE"):
        taken(tmp_path / "bare.safetensors", jpegs)
    safetensors.torch.save_file(bare, tmp_path / "bare.safetensors", {"model": '{"width": "x"}', "mean": "[]"})
    with pytest.raises(UserError, match=r"bare\.safetensors has metadata of vit\.export that cannot be read"):
        taken(tmp_path / "bare.safetensors", jpegs)


def test_weights_of_another_architecture_are_refused_before_settings_are_asked_for(jpegs: Path, tmp_path: Path) -> None:
    """A gated MLP, for example, does not show `mlp_dim`."""
    weights = {n.replace(".fc1.", ".w12."): w for n, w in timm_model().state_dict().items()}
    torch.save(weights, tmp_path / "gated.pth")
    with pytest.raises(UserError, match=r"gated\.pth does not fit the model: it has a gated MLP \(.*no setting$"):
        taken(tmp_path / "gated.pth", jpegs)


def test_the_number_of_classes_is_that_of_the_training_set(jpegs: Path, tmp_path: Path) -> None:
    """Unless it is given; a manifest that cannot be read is an error, not another number."""
    torch.save(torchvision_model(S16).state_dict(), tmp_path / "vit.pth")
    assert read(tmp_path / "vit.pth", jpegs).model.num_classes == CLASSES
    assert read(tmp_path / "vit.pth", jpegs, "--model.num_classes", 5).model.num_classes == 5
    train = tmp_path / "train.beton"
    for write, message in (
        (lambda path: path.write_text("{"), r"train\.beton\.json is damaged"),
        (Path.mkdir, r"train\.beton\.json: Is a directory"),
    ):
        manifest_path(train).unlink(missing_ok=True)
        write(manifest_path(train))
        with pytest.raises(UserError, match=message):
            read(tmp_path / "vit.pth", train)


def test_weights_that_are_damaged_or_cannot_be_read_never_give_the_defaults(jpegs: Path, tmp_path: Path) -> None:
    """One line names the file: cut short, of another kind, missing, or on a disk that fails (EIO of /proc/self/mem)."""
    make_finished_run(tmp_path / "run", load_config(CONFIGS / "demo.yaml", "--model.depth", "1"))
    (checkpoint,) = find_checkpoints(RunFolder(tmp_path / "run").checkpoints)
    manifest = checkpoint / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "failing.pth").symlink_to("/proc/self/mem")
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "text.pth", tmp_path / "folder" / "model.safetensors")
    for name, message in {
        "run": r"run has no intact checkpoint: .*manifest\.json",
        "text.pth": r"text\.pth contains no weights: it is damaged",
        "folder": r"model\.safetensors contains no weights: it is damaged",
        "missing.pth": r"missing\.pth does not exist",
        "failing.pth": r"settings of the run cannot be read: .*failing\.pth: Input/output error; .*: try again later",
    }.items():
        with pytest.raises(UserError, match=f"^init_from: .*{message}") as error:
            read(tmp_path / name, jpegs)
        assert "\n" not in str(error.value)


def test_a_run_with_a_checkpoint_has_its_own_settings(jpegs: Path, tmp_path: Path) -> None:
    """Of its config.yaml, or without one, as of `torchrun`, of its checkpoint; weights and data need not exist.

    A config.yaml that cannot be read is an error.
    """
    demo = load_config(CONFIGS / "demo.yaml", "--model.depth", "1")
    run, gone = tmp_path / "run", tmp_path / "gone"
    make_finished_run(run, demo)
    assert read(gone, gone, run=run).model == replace(demo.model, drop_path=0.1)
    RunFolder(run).config.write_text(to_yaml(replace(demo, model=replace(demo.model, width=128))))
    assert read(gone, gone, run=run).model.width == 128
    assert read(gone, gone, "--model.width", 32, run=run).model.width == 32
    RunFolder(run).config.write_text("optim: {lr: x}")
    with pytest.raises(UserError, match=r"the config in .*run/config\.yaml cannot be read"):
        read(gone, gone, run=run)
    RunFolder(run).config.unlink()
    RunFolder(run).config.mkdir()
    with pytest.raises(UserError, match=r"run/config\.yaml: Is a directory"):
        read(gone, gone, run=run)
    with pytest.raises(UserError, match=r"gone does not exist"):
        read(gone, jpegs, run=tmp_path / "new")


def test_an_error_says_that_a_setting_came_with_the_weights(jpegs: Path, tmp_path: Path) -> None:
    """It is not the default, which may be another value."""
    run = tmp_path / "run"
    make_finished_run(run, load_config(CONFIGS / "demo.yaml", "--model.depth", "1"))
    places = r"\(model\.patch_size: init_from, model\.image_size: --model\.image_size\)"
    with pytest.raises(UserError, match=rf"model\.patch_size 7 does not divide model\.image_size 33  {places}"):
        read(run, jpegs, "--model.image_size", 33)


def test_the_second_stage_of_deit3_is_at_224_pixels_although_its_weights_are_of_192(jpegs: Path) -> None:
    """The recipe names its size; all else that it takes from the first stage is what it would be by itself."""
    first, second = (load_config(CONFIGS / f"vit_b16_deit3_{size}.yaml") for size in (192, 224))
    known = WeightSettings(of_config(to_yaml(first), "first"), heads_by_rule=False)
    settings = InitialSettings(found={Path(second.init_from).absolute(): known})
    words = ["--config", str(CONFIGS / "vit_b16_deit3_224.yaml"), "--data.train", str(jpegs)]
    cfg, _ = parse_config(config_parser("vit"), words, settings)
    expected = replace(second.model, num_classes=CLASSES)
    assert (first.model.image_size, cfg.model.image_size) == (192, 224)
    assert cfg == replace(second, model=expected, data=replace(second.data, train=jpegs))
