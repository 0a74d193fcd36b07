"""`--init_from` reads what the trainers of other libraries write, prefers the EMA, and never runs a file's code."""

import argparse
import datetime
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm.utils
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.helpers.data_sets import small_config
from tests.helpers.finished_runs import make_finished_run
from tests.helpers.models import SMALL, randomized, to_ours, torchvision_model
from vit import export
from vit.checkpoint.read_weights import read_weights
from vit.checkpoint.weight_files import find_weights, read_array
from vit.config.user_error import UserError
from vit.model.weight_fit import check_fit

ARGS = argparse.Namespace(
    data_path=Path("/data/imagenet"), lr=1e-3, scale=np.float64(0.5), seed=np.random.default_rng(0).integers(9, size=3),
    started=datetime.datetime(2024, 5, 1), limit=datetime.timedelta(hours=2), device=torch.device("cuda"),
    amp_dtype=torch.bfloat16, ratio=(0.75, 4 / 3), tags={"a"}, none=None, torch=torch.__version__,
)  # fmt: skip


def model(seed: int, library: str = "timm") -> nn.Module:
    if library == "torchvision":
        return randomized(torchvision_model(SMALL), seed)
    return randomized(
        timm.models.VisionTransformer(
            img_size=28, patch_size=7, embed_dim=32, depth=3, num_heads=4, mlp_ratio=1.5, num_classes=10
        ),
        seed,
    )


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in module.state_dict().items())


def optimizer(module: nn.Module) -> dict[str, Any]:
    adam = torch.optim.AdamW(module.parameters())
    sum(parameter.sum() for parameter in module.parameters()).backward()
    adam.step()
    module.zero_grad()
    return adam.state_dict()


def torchvision_checkpoint(last: nn.Module, ema: nn.Module) -> dict[str, Any]:
    """As references/classification/train.py writes it."""
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(last.parameters(), 1.0), 10)
    averaged = AveragedModel(ema, use_buffers=True)
    return {"model": last.state_dict(), "lr_scheduler": scheduler.state_dict(), "epoch": 3, "args": ARGS} | {
        "optimizer": optimizer(last),
        "model_ema": averaged.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }


def timm_checkpoint(last: nn.Module, ema: nn.Module) -> dict[str, Any]:
    """As timm's CheckpointSaver writes it."""
    kept = timm.utils.ModelEmaV3(ema)
    return {"epoch": 3, "arch": "vit", "version": 2, "args": ARGS, "metric": 71.3, "optimizer": optimizer(last)} | {
        "state_dict": timm.utils.get_state_dict(last),
        "state_dict_ema": timm.utils.get_state_dict(kept),
    }


def lightning_checkpoint(last: nn.Module, ema: nn.Module) -> dict[str, Any]:
    """As Lightning writes it, with the callback WeightAveraging."""
    return {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.6.6",
        "optimizer_states": [optimizer(last)],
    } | {
        "state_dict": prefixed(ema, "model."),
        "current_model_state": prefixed(last, "model."),
        "averaging_state": {"n_averaged": torch.tensor(4)},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.7), "best_model_path": "a/b.ckpt"}},
        "hyper_parameters": vars(ARGS),
    }


def own_ema_checkpoint(last: nn.Module, ema: nn.Module) -> dict[str, Any]:
    """A LightningModule with a compiled model, and an EMA of its own beside it."""
    weights = prefixed(last, "model._orig_mod.") | prefixed(ema, "ema_model.module._orig_mod.")
    loss = {f"loss.{name}": torch.ones(10) for name in "abcd"}
    return {"state_dict": weights | loss | {"ema_model.n_averaged": torch.tensor(4)}}


def dino_checkpoint(last: nn.Module, ema: nn.Module) -> dict[str, Any]:
    return {"student": prefixed(last, "module.backbone."), "teacher": prefixed(ema, "backbone."), "args": ARGS}


WITH_EMA: dict[str, tuple[Callable[[nn.Module, nn.Module], dict[str, Any]], str]] = {
    "torchvision": (torchvision_checkpoint, "model_ema.module"),
    "timm": (timm_checkpoint, "state_dict_ema"),
    "Lightning": (lightning_checkpoint, "state_dict.model"),
    "an EMA in the module": (own_ema_checkpoint, "state_dict.ema_model.module"),
    "DINO": (dino_checkpoint, "teacher.backbone"),
}


def assert_read(path: Path, expected: nn.Module) -> list[str]:
    """The weights are those of a model, and the login node sees the same shapes; returns the report."""
    tensors, found = read_weights(path)
    wanted = to_ours(expected.state_dict())
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in tensors.items())
    assert find_weights(path) == found
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == found.shapes
    assert check_fit(found.shapes, SMALL).report == [f"loaded: {sum(w.numel() for w in wanted.values()):,} weights"]
    return found.report


@pytest.mark.parametrize("writer", WITH_EMA)
def test_the_ema_of_a_training_checkpoint_is_taken(writer: str, tmp_path: Path) -> None:
    """With all that trainers store next to it: arguments, paths, dates, numpy numbers, the optimizer."""
    library = "torchvision" if writer == "torchvision" else "timm"
    last, ema = model(0, library), model(1, library)
    write, place = WITH_EMA[writer]
    torch.save(write(last, ema), tmp_path / "checkpoint.pth.tar")
    report = assert_read(tmp_path / "checkpoint.pth.tar", ema)
    assert report[0] == f"taken: EMA of the weights ({place})"
    assert report[1:] == (["not part of the model: loss.a, loss.b, loss.c, loss.d"] if "module" in writer else [])


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.", "net."],
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_names_may_have_the_prefixes_of_wrappers(prefix: str, library: str, tmp_path: Path) -> None:
    """Of DDP, torch.compile and LightningModules, and combinations; also in the middle, and in Composer's files."""
    weights = model(0, library)
    state = prefixed(weights, prefix)
    torch.save({"model": state, "model_ema": None, "epoch": 3}, tmp_path / "a.pth")
    assert assert_read(tmp_path / "a.pth", weights) == []
    torch.save(
        {"state": {"model": state, "algorithms": []}, "rng": [np.arange(3, dtype=np.uint32)]}, tmp_path / "b.pth"
    )
    assert_read(tmp_path / "b.pth", weights)
    middle = {name.replace("blocks.1.", "blocks.1._orig_mod.").replace("layer_1.", "layer_1._fsdp_wrapped_module."): w
              for name, w in state.items()}  # fmt: skip
    torch.save(middle, tmp_path / "c.pth")
    assert_read(tmp_path / "c.pth", weights)
    safetensors.torch.save_file(dict(state), tmp_path / "d.safetensors")
    assert_read(tmp_path / "d.safetensors", weights)


def test_files_of_old_versions_of_torch_and_python_are_read(tmp_path: Path) -> None:
    """The format before torch 1.6; numpy 1's modules, and Python 3.13's for paths, which may be those of Windows."""
    weights = model(0)
    torch.save(
        {"model": weights.state_dict(), "args": ARGS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    assert_read(tmp_path / "old.pth", weights)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.pth is damaged: unexpected EOF"):
        read_weights(tmp_path / "cut.pth")
    torch.save(
        {"model": weights.state_dict(), "args": ARGS}, tmp_path / "new.pth", _use_new_zipfile_serialization=False
    )
    data = (tmp_path / "new.pth").read_bytes()
    here = f"c{type(tmp_path).__module__}\nPosixPath".encode()
    for there in (b"cpathlib\nWindowsPath", b"cpathlib._local\nWindowsPath"):  # the second in Python 3.13 alone
        (tmp_path / "new.pth").write_bytes(replaced(data, {here: there, b"cnumpy._core.": b"cnumpy.core."}))
        assert_read(tmp_path / "new.pth", weights)


def replaced(data: bytes, names: Mapping[bytes, bytes]) -> bytes:
    """The data with other names in place of these, which it contains."""
    for ours, other in names.items():
        assert ours in data
        data = data.replace(ours, other)
    return data


class Surprise:
    """What a malicious file contains."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("posix.mkdir", False), ("timm.models.vision_transformer.VisionTransformer", False), ("torch.nn.modules", True)],
)
def test_a_pickle_that_could_run_code_is_refused_in_one_plain_line(name: str, allowed: bool, tmp_path: Path) -> None:
    """Which names the class; nothing of it runs.  A whole model is refused too: it is code.

    The login node leaves it to torch to decide on torch's own classes.
    """
    content = {
        "posix.mkdir": {"model": model(0).state_dict(), "args": Surprise(tmp_path / "made")},
        "timm.models.vision_transformer.VisionTransformer": {"model": model(0).state_dict(), "whole": model(0)},
        "torch.nn.modules": {"model": model(0).state_dict(), "loss": nn.CrossEntropyLoss()},
    }[name]
    for new_format in (True, False):
        path = tmp_path / f"{new_format}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new_format)
        with pytest.raises(UserError, match="is not loaded because a pickle can run any program") as error:
            read_weights(path)
        message = str(error.value)
        assert message.startswith(f"{path} contains {name}")
        assert message.isprintable() and "weights_only" not in message and len(message) < 300 + len(str(path))
        if not allowed:
            with pytest.raises(UserError) as on_login_node:
                find_weights(path)
            assert str(on_login_node.value) == message
    assert not (tmp_path / "made").exists()


def test_several_models_are_refused_with_their_names(tmp_path: Path) -> None:
    """Unless one of them is an EMA: it cannot be known which one is meant."""
    torch.save({"generator": model(0).state_dict(), "discriminator": prefixed(model(1), "net.")}, tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"two\.pth has several models \(generator, discriminator\.net\); save one"):
        find_weights(tmp_path / "two.pth")


def test_a_file_that_is_no_checkpoint_is_refused_by_the_login_node(tmp_path: Path) -> None:
    """In one line, with the name of the file; a plain pickle too, and a file that ends too early."""
    torch.save(model(0).state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, content in {
        "cut.pth": whole[:-100],
        "half.pth": whole[: len(whole) // 2],
        "text.pth": b"hello",
        "empty.pth": b"",
        "plain.pth": pickle.dumps({"a": 1}),
        "text.safetensors": b"hello",
    }.items():
        (tmp_path / name).write_bytes(content)
        for read in (find_weights, read_weights):
            with pytest.raises(UserError, match=rf"{name} contains no weights: it is damaged, or is not a file of"):
                read(tmp_path / name)


def test_a_disk_that_cannot_be_read_is_not_a_damaged_file(tmp_path: Path) -> None:
    """An I/O error may go away, and the job tries again; the message names the file."""
    for name, problem in (("vit.pth", "Input/output error"), ("vit.safetensors", "No such device")):
        (tmp_path / name).symlink_to("/proc/self/mem")  # whose first bytes cannot be read or mapped
        for read in (find_weights, read_weights):
            with pytest.raises(OSError, match=rf"{problem}.*: .*{name}"):
                read(tmp_path / name)


def test_all_that_vit_export_writes_can_be_read_again(tmp_path: Path) -> None:
    """The same weights as from the run itself; the number of heads is known, except from torchvision's files."""
    state = make_finished_run(tmp_path / "run", small_config(tmp_path))
    expected, found = read_weights(tmp_path / "run")
    assert found.report == ["taken: EMA of the weights of step 12"] and found.heads == 2
    assert find_weights(tmp_path / "run") == found
    assert state.ema is not None and torch.equal(expected["head.weight"], state.ema.head.weight)
    for to, heads in (("timm", 2), ("safetensors", 2), ("torchvision", None)):
        path = export.export(tmp_path / "run", to)
        tensors, found = read_weights(path)
        assert {n: t.tolist() for n, t in tensors.items()} == {n: t.tolist() for n, t in expected.items()}
        assert found.heads == heads and found.report == []
        assert find_weights(path) == found


def test_single_weights_are_read_without_torch_where_that_is_possible(tmp_path: Path) -> None:
    """As submit.py reads positions: from checkpoints and safetensors, not from pickles, bfloat16 or damaged parts."""
    make_finished_run(tmp_path / "run", small_config(tmp_path))
    tensors, found = read_weights(tmp_path / "run")
    name, expected = "norm.weight", tensors["norm.weight"]
    for dtype, readable in ((torch.float32, True), (torch.float16, True), (torch.bfloat16, False)):
        safetensors.torch.save_file({n: t.to(dtype) for n, t in tensors.items()}, tmp_path / "a.safetensors")
        read = read_array(find_weights(tmp_path / "a.safetensors"), name)
        assert (read is not None) == readable
        assert read is None or torch.equal(torch.from_numpy(read), expected.to(dtype))
    torch.save(tensors, tmp_path / "a.pth")
    assert read_array(find_weights(tmp_path / "a.pth"), name) is None
    read = read_array(found, name)
    assert read is not None and read.tolist() == expected.tolist()
    (found.path / "part-000.bin").write_bytes(b"damaged")
    assert read_array(found, name) is None
