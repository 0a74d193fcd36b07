"""Fine-tuning starts from weights of torchvision, timm, DeiT or another run, and reports what was loaded."""

import shutil
import signal
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import save_state
from tests.helpers.interrupted_runs import Fault, new_run_folder, run_attempt
from tests.helpers.models import SMALL, random_images, randomized, to_ours, torchvision_model
from tests.helpers.paths import CONFIGS
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.read_weights import read_weights
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.recipe import recipe_of
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.model.pretrained import load_pretrained, resize_positions
from vit.model.vision_transformer import VisionTransformer
from vit.run.folder import RunFolder
from vit.train import Outcome

CPU = torch.device("cpu")


def load_model(path: Path, cfg: ModelConfig) -> tuple[VisionTransformer, list[str]]:
    model = VisionTransformer(cfg).eval()
    weights, found = read_weights(path)
    return model, found.report + load_pretrained(weights, model, path.name, found.heads)


@pytest.mark.parametrize(("old_size", "new_size"), [(224, 384), (28, 42), (384, 224)])
def test_position_embeddings_are_resized_as_by_torchvision(old_size: int, new_size: int) -> None:
    """Equal to `interpolate_embeddings` (bicubic, aligned corners) to 1e-6; the class token's is unchanged."""
    patch = 16 if old_size > 28 else 7
    n, m = (old_size // patch) ** 2 + 1, (new_size // patch) ** 2 + 1
    positions = torch.randn(1, n, 24, generator=torch.Generator().manual_seed(0))
    expected = interpolate_embeddings(new_size, patch, OrderedDict({"encoder.pos_embedding": positions}))
    found = resize_positions(positions, m)
    assert found.shape == (1, m, 24)
    torch.testing.assert_close(found, expected["encoder.pos_embedding"], rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:, 0], positions[:, 0])


def test_position_embeddings_without_a_class_token_are_resized() -> None:
    """The corners keep their values."""
    positions = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    larger = resize_positions(positions, 49)
    torch.testing.assert_close(larger[0, [0, 6, 42, 48]], positions[0, [0, 3, 12, 15]])
    with pytest.raises(ValueError, match="cannot resize 16 positions to 50: the patches do not form a square"):
        resize_positions(positions, 50)


@pytest.mark.parametrize("size", [28, 42])
def test_a_torchvision_file_gives_the_logits_of_torchvision_at_any_resolution(size: int, tmp_path: Path) -> None:
    """A file of `torch.save(model.state_dict())`, compared with torchvision's model of that resolution."""
    weights = randomized(torchvision_model(SMALL)).state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    cfg = replace(SMALL, image_size=size)
    model, report = load_model(tmp_path / "vit.pth", cfg)
    reference = torchvision_model(cfg).eval()
    reference.load_state_dict(interpolate_embeddings(size, 7, OrderedDict(weights)))
    with torch.inference_mode():
        torch.testing.assert_close(
            model(random_images(2, size)), reference(random_images(2, size)), rtol=1e-5, atol=1e-5
        )
    count = sum(p.numel() for p in model.parameters())
    assert report == [f"loaded: {count:,} weights"] + ["resized: positions, 17 to 37"] * (size == 42)


def timm_model(class_position: bool = True, **options: object) -> torch.nn.Module:
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5}
    return timm.models.VisionTransformer(
        **shape, num_classes=10, init_values=0.1, no_embed_class=not class_position, **options
    ).eval()


@pytest.mark.parametrize("class_position", [True, False])
@pytest.mark.parametrize("writer", ["timm", "DeiT-III"])
def test_files_of_timm_and_deit_give_the_logits_of_timm(writer: str, class_position: bool, tmp_path: Path) -> None:
    """timm's in safetensors, DeiT-III's as `{"model": …}` with other names; with and without a class position."""
    reference = randomized(timm_model(class_position))
    weights = reference.state_dict()
    path = tmp_path / ("vit.safetensors" if writer == "timm" else "vit.pth")
    if writer == "timm":
        safetensors.torch.save_file(weights, path)
    else:
        named = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): w for n, w in weights.items()}
        torch.save({"model": named, "epoch": 3}, path)
    model, report = load_model(path, replace(SMALL, layer_scale=1e-4))
    with torch.inference_mode():
        torch.testing.assert_close(model(random_images(2, 28)), reference(random_images(2, 28)), rtol=1e-5, atol=1e-5)
    assert len(report) == 1


def test_a_head_for_another_number_of_classes_is_initialized(tmp_path: Path) -> None:
    """With zeros, as any new head; all other weights are loaded.  A class token is not needed for the mean."""
    weights = randomized(torchvision_model(SMALL)).state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    model, report = load_model(tmp_path / "vit.pth", replace(SMALL, num_classes=2, pool="mean"))
    assert report[1:] == ["initialized: head for 2 classes (pretrained: 10)", "ignored: cls_token"]
    assert not model.head.weight.any()
    assert torch.equal(model.positions, weights["encoder.pos_embedding"][:, 1:])
    body = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head."))
    assert report[0] == f"loaded: {body:,} weights"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_file_without_matching_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    """The message names the file and the problem: missing, no weights, another model, truncated, weights missing."""
    weights = randomized(torchvision_model(SMALL)).state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "none.pth": "none.pth does not exist; give a run folder or a file of weights",
        "none.safetensors": "none.safetensors does not exist",
        "resnet.pth": "resnet.pth is not a Vision Transformer of torchvision, timm, DeiT or this project: .*fc.weight",
        "list.pth": "list.pth is not a Vision Transformer of .* it contains a list",
        "text.pth": "text.pth contains no weights",
        "text.safetensors": "text.safetensors contains no weights",
        "empty": "empty is not a run folder: it has no checkpoints",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({n: w for n, w in weights.items() if ".ln_1." not in n}, tmp_path / "incomplete.pth")
    with pytest.raises(
        ValueError, match=r"incomplete\.pth does not fit the model: it lacks blocks\.0\.norm1\.weight, .* and 3 more"
    ):
        load_model(tmp_path / "incomplete.pth", SMALL)
    with pytest.raises(ValueError, match=r"does not fit the model: set model\.patch_size to 7 \(not 14\)"):
        load_model(tmp_path / "vit.pth", replace(SMALL, patch_size=14))
    with pytest.raises(ValueError, match=r"does not fit the model: set model\.depth to 3 \(not 4\)$"):
        load_model(tmp_path / "vit.pth", replace(SMALL, depth=4))
    truncate(tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth contains no weights"):
        read_weights(tmp_path / "vit.pth")


def weights_of(run: Path, prefix: str = "model.") -> dict[str, Tensor]:
    tensors = load_checkpoint(find_checkpoints(RunFolder(run).checkpoints)[0])[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def short_run(betons: Path, **changes: object) -> Config:
    """Six steps of four micro-batches."""
    cfg = small_config(betons)
    return replace(cfg, epochs=1, global_batch=96, micro_batch=24, **changes)


def test_a_run_started_from_another_run_does_not_need_it_to_resume(betons: Path, tmp_path: Path) -> None:
    """On four ranks, from the first run's EMA; after the first run is deleted, it still ends with the same bits."""
    cfg = short_run(betons)
    first = replace(cfg, seed=1, optim=replace(cfg.optim, ema_decay=0.5))
    assert run_ranks(1, run_attempt, first, new_run_folder(tmp_path / "first")) == [Outcome.FINISHED]
    ema, model = weights_of(tmp_path / "first", "average."), weights_of(tmp_path / "first")
    assert not torch.equal(ema["head.weight"], model["head.weight"])
    weights, _ = read_weights(tmp_path / "first")
    assert all(torch.equal(weights[name], ema[name]) for name in model)

    second = replace(
        cfg,
        init_from=str(tmp_path / "first"),
        optim=replace(cfg.optim, optimizer="lamb", layer_decay=0.7, ema_decay=0.9, ema_warmup="ramp"),
    )
    state = TrainState.fresh(second, CPU)
    report = ["taken: EMA of the weights of step 6", f"loaded: {sum(w.numel() for w in ema.values()):,} weights"]
    assert state.load_initial_weights(tmp_path / "first") == report
    assert state.ema is not None and torch.equal(state.ema.head.weight, ema["head.weight"])

    expected, stopped = new_run_folder(tmp_path / "uninterrupted"), new_run_folder(tmp_path / "stopped")
    assert run_ranks(4, run_attempt, second, expected) == [Outcome.FINISHED] * 4
    assert run_ranks(4, run_attempt, second, stopped, Fault(2, 1, signal.SIGTERM)) == [Outcome.STOPPED] * 4
    shutil.rmtree(tmp_path / "first")
    assert run_ranks(4, run_attempt, second, stopped) == [Outcome.FINISHED] * 4
    tensors, expected_tensors = weights_of(stopped), weights_of(expected)
    assert [name for name in expected_tensors if not torch.equal(tensors[name], expected_tensors[name])] == []
    (event,) = (e for e in RunFolder(stopped).events() if e["event"] == "initialized")
    assert event["source"] == second.init_from and event["weights"] == report
    other = replace(second, init_from="elsewhere")
    with pytest.raises(ValueError, match=r"init_from: .*/first in the run, .*/elsewhere now"):
        run_ranks(1, run_attempt, other, stopped)


def test_relative_and_absolute_paths_of_initial_weights_are_the_same_recipe(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a job may start in another working directory."""
    monkeypatch.chdir(tmp_path)
    relative, absolute = (replace(short_run(betons), init_from=name) for name in ("first", str(tmp_path / "first")))
    assert recipe_of(relative) == recipe_of(absolute)
    assert recipe_of(relative) != recipe_of(short_run(betons))


def test_a_run_ends_at_once_if_its_initial_weights_are_missing(betons: Path, tmp_path: Path) -> None:
    """Before anything is trained or saved; the message names the file."""
    run, cfg = new_run_folder(tmp_path / "run"), replace(short_run(betons), init_from=str(tmp_path / "nothing.pth"))
    with pytest.raises(ValueError, match=r"nothing\.pth does not exist"):
        run_ranks(1, run_attempt, cfg, run)
    assert not find_checkpoints(RunFolder(run).checkpoints)


def test_a_damaged_checkpoint_of_another_run_is_skipped_and_left_untouched(betons: Path, tmp_path: Path) -> None:
    """That run may be in progress; its newest intact checkpoint is read."""
    state = TrainState.fresh(short_run(betons), CPU)
    folder = RunFolder(tmp_path).checkpoints
    older, newer = (save_state(tmp_path, replace(state, step=step), short_run(betons)) for step in (1, 2))
    truncate(max(newer.iterdir(), key=lambda path: path.stat().st_size))
    assert torch.equal(read_weights(tmp_path)[0]["positions"], state.model.positions)
    assert find_checkpoints(folder) == [newer, older]
    shutil.rmtree(older)
    with pytest.raises(ValueError, match=r"has no intact checkpoint: .*bytes instead of"):
        read_weights(tmp_path)


def test_the_fine_tuning_example_loads_torchvision_weights() -> None:
    """configs/finetune.yaml, for two classes: only the head is initialized; deeper layers learn more slowly."""
    cfg = load_config(CONFIGS / "finetune.yaml", "--model.num_classes", "2")
    assert (cfg.model.num_classes, cfg.optim.layer_decay, bool(cfg.init_from)) == (2, 0.75, True)
    reference = torchvision_model(replace(cfg.model, num_classes=1000))
    model = VisionTransformer(cfg.model)
    assert load_pretrained(to_ours(reference.state_dict()), model)[1:] == [
        "initialized: head for 2 classes (pretrained: 1000)"
    ]
    assert torch.equal(model.blocks[11].mlp.down.weight, reference.encoder.layers[11].mlp[3].weight)
    assert to_ours({"patch_embed.proj.weight": torch.zeros(8, 3, 2, 2)})["patches.proj.weight"].shape == (8, 12)
