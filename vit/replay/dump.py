"""`--dump FOLDER`: what a step got and computed, as files: inputs, activations, gradients.

    step.json               all that --json prints
    inputs.safetensors      augmented images (V, m, 3, S, S), targets (V, m, C), samples, labels, logits, losses
    gradients.safetensors   the gradient of each weight, summed over the step; "scale" in its metadata is that of fp16
    gradients.csv           statistics of each weight and of its gradient
    activations.csv         statistics of the output of each module, for each micro-batch

V micro-batches of m images, C classes.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vit.checkpoint.safetensors_file import write_safetensors
from vit.config.user_error import UserError
from vit.replay.output_places import check_folder_place
from vit.replay.passes import Passes, uncompiled
from vit.replay.replayer import ReplayedStep, Replayer

STATISTICS = ("mean", "std", "max_abs", "zeros", "nan", "infinite")  # columns; the last three are shares of the values

Row = dict[str, Any]


def check_dump_folder(folder: Path) -> None:
    """Raises UserError unless the folder is empty or does not exist, and can be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--dump {folder} exists and is not an empty folder; name a new one")
    check_folder_place("--dump", folder)


def write_dump(folder: Path, step: ReplayedStep, replayer: Replayer, about: Mapping[str, Any]) -> None:
    """Writes all files; `about` is the content of step.json.  Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _write_table(folder / "activations.csv", activations(step, replayer))
    _write_table(folder / "gradients.csv", gradients(replayer))
    images, targets = (torch.stack([each[i] for each in step.micro_batches]) for i in (0, 1))
    inputs = {
        "images": images,
        "targets": targets,
        "samples": torch.from_numpy(step.samples),
        "labels": torch.from_numpy(step.labels),
        "logits": step.logits,
        "losses": torch.from_numpy(step.sample_losses),
    }
    mean_std = {name: json.dumps(getattr(step.cfg.augment, name)) for name in ("mean", "std")}
    _write_tensors(folder / "inputs.safetensors", inputs, {"step": str(step.step), **mean_std})
    found = {name: p.grad for name, p in replayer.state.model.named_parameters() if p.grad is not None}
    scale = replayer.state.scaler.get_scale()
    _write_tensors(folder / "gradients.safetensors", found, {"step": str(step.step), "scale": f"{scale:g}"})


def activations(step: ReplayedStep, replayer: Replayer) -> list[Row]:
    """Statistics of the output of each module, in the order in which they are computed, for each micro-batch."""
    model, rows = replayer.state.model, list[Row]()
    for j, (images, targets) in enumerate(step.micro_batches):
        with uncompiled(replayer), torch.no_grad(), _Recorder(model) as recorder:
            Passes(replayer, step, j).forward(images, targets)
        rows += [{"micro_batch": j, **row} for row in recorder.rows]
    return rows


class _Recorder:
    """Hooks of all modules of a model, which describe their outputs."""

    def __init__(self, model: nn.Module) -> None:
        self.rows = list[Row]()
        self._modules = {name or "the model": module for name, module in model.named_modules()}

    def __enter__(self) -> "_Recorder":
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def describe(module: nn.Module, _: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                kind = {"module": name, "type": type(module).__name__}
                place = {"shape": "x".join(map(str, tensor.shape)), "dtype": str(tensor.dtype).removeprefix("torch.")}
                self.rows.append({**kind, **place, **statistics(tensor)})

        return describe


def gradients(replayer: Replayer) -> list[Row]:
    """Statistics of each weight and of its gradient, with their norms."""
    rows = []
    for name, p in replayer.state.model.named_parameters():
        if p.grad is None:
            continue
        shape = "x".join(map(str, p.shape))
        norms = {"weight_norm": float(p.detach().norm()), "gradient_norm": float(p.grad.norm())}
        rows.append({"weight": name, "shape": shape, **norms, **statistics(p.grad)})
    return rows


def statistics(tensor: Tensor) -> dict[str, float]:
    """STATISTICS of a tensor.  Mean, standard deviation and maximum are of its finite values."""
    values = tensor.detach().double().flatten()
    finite = values[values.isfinite()]
    count = max(1, len(values))
    found = (
        float(finite.mean()) if len(finite) else 0.0,
        float(finite.std(correction=0)) if len(finite) else 0.0,
        float(finite.abs().max()) if len(finite) else 0.0,
        *(int(mask.sum()) / count for mask in (values == 0, values.isnan(), values.isinf())),
    )
    return dict(zip(STATISTICS, found, strict=True))


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_safetensors(path, content, metadata)
