"""Reads weights from run folders, checkpoints, and files of torchvision, timm and DeiT."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.config.user_error import UserError
from vit.model.weight_names import Tensors, from_timm, from_torchvision
from vit.run.folder import RunFolder


def read_weights(path: Path) -> Tensors:
    """Weights under this project's names, from a run folder, a checkpoint, a .safetensors or a `torch.save` file.

    Reads the newest intact checkpoint of a run, and the EMA of the weights if a checkpoint has one.  Raises UserError
    that names the file and the problem.
    """
    path = path.expanduser()
    if path.is_dir():
        tensors, _, _ = read_checkpoint(path)
        prefix = "average." if any(name.startswith("average.") for name in tensors) else "model."
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        loaded = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # unpickling a file that is no pickle can raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} contains no weights ({reason})") from None
    if "patches.proj.weight" in loaded:
        return loaded
    if "conv_proj.weight" in loaded:
        return from_torchvision(loaded)
    if "patch_embed.proj.weight" in loaded:
        return from_timm(loaded)
    names = ", ".join(list(loaded)[:3]) or "nothing"
    raise UserError(
        f"{path} is not a Vision Transformer of torchvision, timm, DeiT or this project: it contains {names} …"
    )


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any], Path]:
    """Reads a checkpoint, or the newest intact one of a run: its tensors, its metadata with the step, and its path.

    Does not modify the folder, which may belong to a run in progress.  Raises UserError.
    """
    run = RunFolder(path).checkpoints
    candidates = find_checkpoints(run) if run.is_dir() else [path]
    problems = []
    for candidate in candidates:
        try:
            tensors, manifest = load_checkpoint(candidate)
        except DamagedCheckpointError as error:
            problems.append(str(error))
        else:
            return tensors, manifest["about"] | {"step": manifest["step"]}, candidate
    raise UserError(f"{path} has no intact checkpoint" + (f": {problems[0]}" if problems else ""))


def _load_pickle(path: Path) -> Tensors:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):  # DeiT and others store the optimizer next to the weights
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise TypeError("not a state dict")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
