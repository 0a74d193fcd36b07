"""Fine-tuning begins with the weights that were asked for, whoever wrote them, and says what became of each."""

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
from tests.helpers.finished_runs import saved
from tests.helpers.paths import CONFIGS
from tests.helpers.ranks import run_ranks
from tests.vit.checkpoint.test_resume import attempt, prepared
from tests.vit.model.test_vision_transformer import SMALL, pictures, torchvisions, trained
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.read_weights import read_weights
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.schema import Config, ModelConfig, recipe
from vit.model.vision_transformer import VisionTransformer
from vit.model.weight_names import fit_weights, from_timm, from_torchvision, resize_positions
from vit.run.folder import RunFolder
from vit.train import Outcome

CPU = torch.device("cpu")


def fitted(path: Path, cfg: ModelConfig) -> tuple[VisionTransformer, list[str]]:
    model = VisionTransformer(cfg).eval()
    return model, fit_weights(read_weights(path), model)


@pytest.mark.parametrize(("before", "after"), [(224, 384), (28, 42), (384, 224)])
def test_positions_for_another_resolution_are_torchvisions(before: int, after: int) -> None:
    """Bicubic, corners on corners, the class token's untouched: `interpolate_embeddings` to 1e-6."""
    patch = 16 if before > 28 else 7
    n, m = (before // patch) ** 2 + 1, (after // patch) ** 2 + 1
    positions = torch.randn(1, n, 24, generator=torch.Generator().manual_seed(0))
    expected = interpolate_embeddings(after, patch, OrderedDict({"encoder.pos_embedding": positions}))
    found = resize_positions(positions, m)
    assert found.shape == (1, m, 24)
    torch.testing.assert_close(found, expected["encoder.pos_embedding"], rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:, 0], positions[:, 0])


def test_a_grid_without_a_class_token_is_resized_whole() -> None:
    """And back again, its corners have not moved."""
    positions = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    larger = resize_positions(positions, 49)
    torch.testing.assert_close(larger[0, [0, 6, 42, 48]], positions[0, [0, 3, 12, 15]])
    with pytest.raises(ValueError, match="16 positions cannot be made 50: they are not those of a square"):
        resize_positions(positions, 50)


@pytest.mark.parametrize("size", [28, 42])
def test_a_torchvision_file_gives_torchvisions_logits_at_any_resolution(size: int, tmp_path: Path) -> None:
    """As `torch.save(model.state_dict())` leaves it, against torchvision's own model of that size."""
    weights = trained(torchvisions(SMALL)).state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    cfg = replace(SMALL, image_size=size)
    model, said = fitted(tmp_path / "vit.pth", cfg)
    reference = torchvisions(cfg).eval()
    reference.load_state_dict(interpolate_embeddings(size, 7, OrderedDict(weights)))
    with torch.inference_mode():
        torch.testing.assert_close(model(pictures(2, size)), reference(pictures(2, size)), rtol=1e-5, atol=1e-5)
    count = sum(p.numel() for p in model.parameters())
    assert said == [f"loaded: {count:,} weights"] + ["resized: positions, 17 to 37"] * (size == 42)


def timms(class_position: bool = True, **options: object) -> torch.nn.Module:
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5}
    return timm.models.VisionTransformer(
        **shape, num_classes=10, init_values=0.1, no_embed_class=not class_position, **options
    ).eval()


@pytest.mark.parametrize("class_position", [True, False])
@pytest.mark.parametrize("writer", ["timm", "DeiT-III"])
def test_files_of_timm_and_deit_give_their_logits(writer: str, class_position: bool, tmp_path: Path) -> None:
    """timm's in safetensors, DeiT's as `{"model": …}` with its own names of layer scale; no position for the class."""
    reference = trained(timms(class_position))
    weights = reference.state_dict()
    path = tmp_path / ("vit.safetensors" if writer == "timm" else "vit.pth")
    if writer == "timm":
        safetensors.torch.save_file(weights, path)
    else:
        named = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): w for n, w in weights.items()}
        torch.save({"model": named, "epoch": 3}, path)
    model, said = fitted(path, replace(SMALL, layer_scale=1e-4))
    with torch.inference_mode():
        torch.testing.assert_close(model(pictures(2, 28)), reference(pictures(2, 28)), rtol=1e-5, atol=1e-5)
    assert len(said) == 1


def test_another_number_of_classes_gets_a_new_head(tmp_path: Path) -> None:
    """Which starts at zero, as every new one; what else is in the file is named, and all the rest is loaded."""
    weights = trained(torchvisions(SMALL)).state_dict()
    torch.save(weights | {"extra": torch.zeros(1)}, tmp_path / "vit.pth")
    model, said = fitted(tmp_path / "vit.pth", replace(SMALL, num_classes=2, pool="mean"))
    assert said[1:] == ["new: a head of 2 classes in place of 10", "left out: cls_token, extra"]
    assert not model.head.weight.any()
    assert torch.equal(model.positions, weights["encoder.pos_embedding"][:, 1:])
    body = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head."))
    assert said[0] == f"loaded: {body:,} weights"


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_what_holds_no_fitting_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    """Each names the file and what is wrong: missing, no weights at all, another model's, cut short, pieces missing."""
    weights = trained(torchvisions(SMALL)).state_dict()
    torch.save(weights, tmp_path / "vit.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "none.pth": "none.pth cannot be read: No such file or directory",
        "none.safetensors": "none.safetensors cannot be read: No such file",
        "resnet.pth": "resnet.pth is no Vision Transformer of torchvision, timm, DeiT or this project: .*fc.weight",
        "list.pth": "list.pth holds no weights \\(TypeError: no state dict\\)",
        "text.pth": "text.pth holds no weights",
        "text.safetensors": "text.safetensors holds no weights",
        "empty": "empty has no whole checkpoint",
    }.items():
        with pytest.raises(ValueError, match=words) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save({n: w for n, w in weights.items() if ".ln_1." not in n}, tmp_path / "holes.pth")
    with pytest.raises(ValueError, match=r"lack blocks\.0\.norm1\.weight, .* and 3 more; model\.\* must describe"):
        fitted(tmp_path / "holes.pth", SMALL)
    with pytest.raises(ValueError, match=r"patches\.proj\.weight has the shape \(32, 147\), .* wants \(32, 588\)"):
        fitted(tmp_path / "vit.pth", replace(SMALL, patch_size=14))
    with pytest.raises(ValueError, match=r"lack blocks\.3\..* and 9 more"):
        fitted(tmp_path / "vit.pth", replace(SMALL, depth=4))
    damaged(tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth holds no weights"):
        read_weights(tmp_path / "vit.pth")


def weights_of(run: Path, room: str = "model.") -> dict[str, Tensor]:
    tensors = load_checkpoint(find_checkpoints(RunFolder(run).checkpoints)[0])[0]
    return {name.removeprefix(room): tensor for name, tensor in tensors.items() if name.startswith(room)}


def short(betons: Path, **changes: object) -> Config:
    """Six steps of four micro-batches."""
    cfg = small_config(betons)
    return replace(cfg, epochs=1, global_batch=96, micro_batch=24, **changes)


def test_a_run_goes_on_from_a_run_and_then_no_longer_needs_it(betons: Path, tmp_path: Path) -> None:
    """On four ranks, from the first run's average: stopped, with the first run gone, it ends with the same bits."""
    cfg = short(betons)
    first = replace(cfg, seed=1, optim=replace(cfg.optim, ema_decay=0.5))
    assert run_ranks(1, attempt, first, prepared(tmp_path / "first")) == [Outcome.FINISHED]
    average, model = weights_of(tmp_path / "first", "average."), weights_of(tmp_path / "first")
    assert not torch.equal(average["head.weight"], model["head.weight"])
    given = read_weights(tmp_path / "first")
    assert all(torch.equal(given[name], average[name]) for name in model)

    second = replace(
        cfg,
        init_from=str(tmp_path / "first"),
        optim=replace(cfg.optim, optimizer="lamb", layer_decay=0.7, ema_decay=0.9, ema_warmup="ramp"),
    )
    state = TrainState.fresh(second, CPU)
    assert state.start_from(tmp_path / "first") == [f"loaded: {sum(w.numel() for w in average.values()):,} weights"]
    assert state.ema is not None and torch.equal(state.ema.head.weight, average["head.weight"])

    left_alone, stopped = prepared(tmp_path / "left-alone"), prepared(tmp_path / "stopped")
    assert run_ranks(4, attempt, second, left_alone) == [Outcome.FINISHED] * 4
    assert run_ranks(4, attempt, second, stopped, (2, 1, signal.SIGTERM)) == [Outcome.STOPPED] * 4
    shutil.rmtree(tmp_path / "first")
    assert run_ranks(4, attempt, second, stopped) == [Outcome.FINISHED] * 4
    ours, theirs = weights_of(stopped), weights_of(left_alone)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    (told,) = (e for e in RunFolder(stopped).events() if e["event"] == "initialized")
    assert told["source"] == second.init_from
    other = replace(second, init_from="elsewhere")
    with pytest.raises(ValueError, match=r"init_from: .*/first in the checkpoint, .*/elsewhere now"):
        run_ranks(1, attempt, other, stopped)


def test_a_beginning_is_the_same_from_wherever_it_is_named(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand in a folder, or by a job that starts in another one."""
    monkeypatch.chdir(tmp_path)
    near, far = (replace(short(betons), init_from=name) for name in ("first", str(tmp_path / "first")))
    assert recipe(near) == recipe(far)
    assert recipe(near) != recipe(short(betons))


def test_a_beginning_that_is_not_there_ends_the_run_at_once(betons: Path, tmp_path: Path) -> None:
    """With its name, before anything is trained or saved."""
    with pytest.raises(ValueError, match=r"nothing\.pth cannot be read: No such file or directory"):
        run_ranks(
            1, attempt, replace(short(betons), init_from=str(tmp_path / "nothing.pth")), prepared(tmp_path / "run")
        )
    assert not find_checkpoints(RunFolder(tmp_path / "run").checkpoints)


def test_a_damaged_checkpoint_of_the_first_run_is_passed_over_and_left_as_it_is(betons: Path, tmp_path: Path) -> None:
    """The run may go on elsewhere; its newest whole checkpoint is read."""
    state = TrainState.fresh(short(betons), CPU)
    folder = RunFolder(tmp_path).checkpoints
    older, newer = (saved(tmp_path, replace(state, step=step), short(betons)) for step in (1, 2))
    file = max(newer.iterdir(), key=lambda path: path.stat().st_size)
    damaged(file)
    assert torch.equal(read_weights(tmp_path)["positions"], state.model.positions)
    assert find_checkpoints(folder) == [newer, older]
    shutil.rmtree(older)
    with pytest.raises(ValueError, match=r"has no whole checkpoint: .*bytes, not"):
        read_weights(tmp_path)


def test_the_example_is_two_classes_from_imagenets_weights() -> None:
    """configs/finetune.yaml: torchvision's vit_b_16 fits it, and only the head is new; deeper layers learn slower."""
    cfg = load_config(CONFIGS / "finetune.yaml")
    assert (cfg.model.num_classes, cfg.optim.layer_decay, bool(cfg.init_from)) == (2, 0.75, True)
    theirs = torchvisions(replace(cfg.model, num_classes=1000))
    model = VisionTransformer(cfg.model)
    assert fit_weights(from_torchvision(theirs.state_dict()), model)[1:] == [
        "new: a head of 2 classes in place of 1000"
    ]
    assert torch.equal(model.blocks[11].mlp.down.weight, theirs.encoder.layers[11].mlp[3].weight)
    assert from_timm({"patch_embed.proj.weight": torch.zeros(8, 3, 2, 2)})["patches.proj.weight"].shape == (8, 12)
