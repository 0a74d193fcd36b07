"""Reads weights from run folders, checkpoints, and the files of torchvision, timm and DeiT."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.model.weight_names import Tensors, from_timm, from_torchvision
from vit.run.folder import RunFolder


def read_weights(path: Path) -> Tensors:
    """Weights under our names, from a run folder, a checkpoint, a .safetensors file or one that `torch.save` wrote.

    Of a run, the newest whole checkpoint; of a checkpoint, the averaged weights if it has any.  Raises ValueError that
    names the file and what is wrong with it.
    """
    path = path.expanduser()
    if path.is_dir():
        tensors, _, _ = read_checkpoint(path)
        room = "average." if any(name.startswith("average.") for name in tensors) else "model."
        return {name.removeprefix(room): tensor for name, tensor in tensors.items() if name.startswith(room)}
    try:
        loaded = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # unpicklers fail in many ways on what was never pickled
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} holds no weights ({reason})") from None
    if "patches.proj.weight" in loaded:
        return loaded
    if "conv_proj.weight" in loaded:
        return from_torchvision(loaded)
    if "patch_embed.proj.weight" in loaded:
        return from_timm(loaded)
    names = ", ".join(list(loaded)[:3]) or "nothing"
    raise ValueError(f"{path} is no Vision Transformer of torchvision, timm, DeiT or this project: it holds {names} …")


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any], Path]:
    """Tensors, what was saved beside them, and where: of a checkpoint, or of a run's newest whole one.

    Nothing in the folder is touched, so that it may belong to a run that goes on.  Raises ValueError.
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
    raise ValueError(f"{path} has no whole checkpoint" + (f": {problems[0]}" if problems else ""))


def _unpickled(path: Path) -> Tensors:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for room in ("model", "state_dict"):  # DeiT and others keep their optimizer beside them
        if isinstance(loaded, dict) and isinstance(loaded.get(room), dict):
            loaded = loaded[room]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise TypeError("no state dict")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
