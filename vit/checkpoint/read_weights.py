"""Reads weights from run folders, checkpoints, and files of torchvision, timm, DeiT and others."""

import pickle
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vit.checkpoint.format import DamagedCheckpointError
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.torch_pickle import HARMLESS, refusal
from vit.checkpoint.weight_files import (
    WeightFile,
    checkpoints_in,
    find_weights,
    in_checkpoint,
    no_checkpoint,
    weights_in_folder,
)
from vit.config.user_error import UserError
from vit.model.pretrained import Tensors, converted
from vit.run.disk_errors import naming

_DAMAGE = re.compile(
    r"EOF|corrupt|PytorchStreamReader|deserializing", re.IGNORECASE
)  # in torch's messages, safetensors'


def read_weights(path: Path) -> tuple[Tensors, WeightFile]:
    """Weights under this project's names, and where they were found; see `find_weights` for what can be read.

    Reads the newest intact checkpoint of a run, and the EMA of the weights if there is one.  Raises UserError that
    names the file and the problem, OSError if it cannot be read now.
    """
    if path.is_dir() and weights_in_folder(path) is None:
        tensors, about, checkpoint = read_checkpoint(path)
        found = in_checkpoint(checkpoint, {n: tuple(t.shape) for n, t in tensors.items()}, about, about["step"])
    else:
        found = find_weights(path)
        tensors = _load_file(found)
    return {ours: converted(tensors[name], found.shapes[ours]) for ours, name in found.names.items()}, found


def read_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any], Path]:
    """Reads a checkpoint, or the newest intact one of a run: its tensors, its metadata with the step, and its path.

    Does not modify the folder, which may belong to a run in progress.  A damaged checkpoint is skipped, which stderr
    says.  Raises UserError, OSError if a checkpoint cannot be read now.
    """
    problems = []
    for candidate in checkpoints_in(path):
        try:
            tensors, manifest = load_checkpoint(candidate)
        except DamagedCheckpointError as error:
            problems.append(str(error))
        else:
            for problem in problems:
                print(f"not used: {problem}; {candidate} is used instead", file=sys.stderr)
            return tensors, manifest["about"] | {"step": manifest["step"]}, candidate
    raise no_checkpoint(path, problems)


def _load_file(found: WeightFile) -> Tensors:
    """The state dict of a file, under its own names."""
    path = found.path
    try:
        with naming(path):
            content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except (RuntimeError, safetensors.SafetensorError) as error:
        if not _DAMAGE.search(str(error)):
            raise
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    for key in found.keys:
        content = content[key]
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _load_pickle(path: Path) -> Any:
    """Loads a file of `torch.save`, without any class that is not known to be harmless."""
    harmless = [(pkgutil.resolve_name(loaded_as), name) for name, loaded_as in HARMLESS.items()]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SUMm"}
    with torch.serialization.safe_globals([*harmless, *dtypes]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise refusal(path, name[1] if name else "Python objects of an unusual kind") from None
