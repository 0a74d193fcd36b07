"""Finds the weights of a Vision Transformer in a run, a checkpoint, a file or a folder: names and shapes.

Does not import torch, so that a login node can check `--init_from`; `read_weights.py` reads the tensors.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import yaml

from vit.checkpoint import stored_settings
from vit.checkpoint.format import DamagedCheckpointError, find_checkpoints, read_manifest, read_tensors
from vit.checkpoint.torch_pickle import TensorShape, read_shapes
from vit.config.user_error import UserError, first_few
from vit.model.weight_names import PATCH_EMBEDDINGS, Shape, our_names, our_shapes
from vit.run.disk_errors import naming
from vit.run.folder import RunFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What PyTorch wraps around modules; it may be anywhere in a name.
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Names of EMAs: `model_ema` (torchvision, DeiT), `state_dict_ema` (timm), `ema_model.`, `teacher` (DINO), ….
_AVERAGED = re.compile(r"(^|[._])(ema|average|averaged|teacher|swa)($|[._])")
# Parts of training checkpoints without a model; Composer keeps the other weights in `algorithms` while its EMA is on.
_SKIPPED = re.compile(r"optim.*|algorithms|callbacks")
_DEPTH = 4  # dictionaries in dictionaries
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # of timm, the Hugging Face Hub and Accelerate


@dataclass(frozen=True)
class WeightFile:
    """Where the weights of a model are, and their shapes."""

    path: Path  # the file, or the folder of the checkpoint
    names: dict[str, str]  # our names -> those in the file
    shapes: dict[str, Shape]  # under our names, after conversion
    keys: tuple[str, ...] = ()  # the dictionaries in the file that lead to the state dict
    report: list[str] = field(default_factory=list)  # which weights are taken, if the file has several
    heads: int | None = None  # attention heads, which no shape shows; None: not known
    # Reads the settings that are stored with the weights, by dotted name.  Raises UserError if it cannot.
    settings: Callable[[], dict[str, Any]] = field(default=dict, compare=False)


def find_weights(path: Path) -> WeightFile:
    """The weights in a run folder, a checkpoint, a `.safetensors` or `torch.save` file, or a folder for timm.

    Of a run this is its newest checkpoint.  If there is an EMA of the weights, it is taken.  Raises UserError that
    names the file and the problem, OSError if it cannot be read now.
    """
    if not path.is_dir():
        return _in_file(path)
    if file := weights_in_folder(path):
        found, config = _in_file(file), path / "config.json"
        if not config.exists():
            return found
        with naming(config):
            text = config.read_bytes().decode("utf-8", "replace")
        heads = found.heads or _whole_number(lambda: json.loads(text)["model_args"]["num_heads"])
        return replace(found, heads=heads, settings=partial(stored_settings.of_timm, text, str(config)))
    problems = []
    for candidate in checkpoints_in(path):
        try:
            manifest = read_manifest(candidate)
        except (DamagedCheckpointError, FileNotFoundError) as error:
            problems.append(str(error))
            continue
        shapes = {name: tuple(entry["shape"]) for name, entry in manifest["tensors"].items()}
        return in_checkpoint(candidate, shapes, manifest["about"], manifest["step"])
    raise no_checkpoint(path, problems)


def read_array(found: WeightFile, name: str) -> "NDArray[Any] | None":
    """One of the weights as the file has it, without conversion; None if it can be read only in the job.

    That is so for files of `torch.save` and bfloat16, which take torch, and for a damaged checkpoint, in place of which
    the job uses an older one.  Raises OSError.
    """
    import numpy as np  # not at the top: submit.py rarely needs it, and it takes time

    raw = found.names[name]
    if found.path.suffix == ".safetensors":
        with naming(found.path), safetensors.safe_open(found.path, "np") as file:
            readable = file.get_slice(raw).get_dtype() in ("F16", "F32", "F64")
            return file.get_tensor(raw) if readable else None
    if found.path.is_dir():
        manifest = read_manifest(found.path)
        try:
            data = next(data for tensor, data in read_tensors(found.path, manifest) if tensor == raw)
        except DamagedCheckpointError:
            return None
        return np.frombuffer(data, manifest["tensors"][raw]["dtype"]).reshape(found.shapes[name])
    return None


def weights_in_folder(path: Path) -> Path | None:
    """The file with the weights in a folder for timm or the Hugging Face Hub, None if it is not one."""
    if (path / "manifest.json").exists() or RunFolder(path).checkpoints.exists():
        return None
    return next((path / name for name in _FOLDER_FILES if (path / name).exists()), None)


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first; a checkpoint itself."""
    run = RunFolder(path).checkpoints
    return find_checkpoints(run) if run.is_dir() else [path]


def no_checkpoint(path: Path, problems: list[str]) -> UserError:
    """The error for a folder in which there are no weights."""
    run = RunFolder(path)
    if not any(file.exists() for file in (path / "manifest.json", run.checkpoints, run.config)):
        inside = [str(p.parent) for p in sorted(path.glob("*/checkpoints"))]
        advice = f"name one of the runs in it: {first_few(inside)}" if inside else "by default, runs are in runs/"
        return UserError(f"{path} is not a run folder: it has no checkpoints; {advice}")
    if not (path / "manifest.json").exists() and not checkpoints_in(path)[1:] and not find_checkpoints(run.checkpoints):
        return UserError(f"{path} has no checkpoint yet; try again when the run has saved one")
    return UserError(f"{path} has no intact checkpoint" + (f": {problems[0]}" if problems else ""))


def in_checkpoint(path: Path, shapes: Mapping[str, Shape], about: Mapping[str, Any], step: int) -> WeightFile:
    """The weights in a checkpoint with tensors of these shapes: the EMA, if there is one."""
    prefix = "average." if any(name.startswith("average.") for name in shapes) else "model."
    names = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    taken = f"taken: {'EMA of the weights' if prefix == 'average.' else 'weights'} of step {step:,}"
    return WeightFile(
        path,
        names,
        {ours: shapes[name] for ours, name in names.items()},
        report=[taken],
        heads=_whole_number(lambda: yaml.safe_load(about["config"])["model"]["heads"]),
        settings=partial(stored_settings.of_config, str(about["config"]), str(path)) if "config" in about else dict,
    )


def _in_file(path: Path) -> WeightFile:
    metadata: dict[str, str] = {}
    try:
        with naming(path):
            if path.suffix == ".safetensors":
                with safetensors.safe_open(path, "np") as file:
                    content: Any = {n: TensorShape(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
                    metadata = file.metadata() or {}  # `vit.export` writes the model's config into it
            else:
                content = read_shapes(path)
    except (FileNotFoundError, NotADirectoryError):
        advice = "give a run folder or a file of weights; configs/README.md names some to download"
        if re.search(r"(^|/)https?:/", str(path)):
            advice = "download it first, with curl -LO ADDRESS, and give the file"
        raise UserError(f"{path} does not exist; {advice}") from None
    except (UserError, OSError):
        raise
    except Exception as error:  # unpickling a file that is no pickle can raise almost anything
        if isinstance(error.__context__, OSError):  # zipfile hides it
            with naming(path):
                raise error.__context__ from None
        kind = "safetensors" if path.suffix == ".safetensors" else "torch.save"
        raise UserError(f"{path} contains no weights: it is damaged, or is not a file of {kind}") from error
    heads = _whole_number(lambda: json.loads(metadata["model"])["heads"])
    return replace(_choose(path, content, heads), settings=partial(stored_settings.of_metadata, metadata, str(path)))


@dataclass(frozen=True)
class _Candidate:
    """A state dict with the patch embedding of a Vision Transformer."""

    keys: tuple[str, ...]  # the dictionaries that lead to it
    prefix: str  # of the names of the model's weights
    shapes: dict[str, Shape]  # of all weights, under their names without wrappers
    names: dict[str, str]  # names without wrappers -> those in the file

    @property
    def place(self) -> str:
        return ".".join((*self.keys, self.prefix)).strip(".") or "the top level"


def _candidates(content: Any, keys: tuple[str, ...] = ()) -> Iterator[_Candidate]:
    if not isinstance(content, Mapping):
        return
    names = {_WRAPPERS.sub("", n): n for n, v in content.items() if isinstance(n, str) and isinstance(v, TensorShape)}
    shapes = {name: tuple(content[raw]) for name, raw in names.items()}
    for name in names:
        for embedding in PATCH_EMBEDDINGS:
            prefix = name.removesuffix(embedding)
            if prefix != name and (not prefix or prefix.endswith(".")):
                yield _Candidate(keys, prefix, shapes, names)
    for key, value in content.items() if len(keys) < _DEPTH else ():
        if isinstance(key, str) and not _SKIPPED.fullmatch(key):
            yield from _candidates(value, (*keys, key))


def _choose(path: Path, content: Any, heads: int | None) -> WeightFile:
    """The EMA, or the only model.  Raises UserError if there is no model, or several."""
    candidates = list(_candidates(content))
    if not candidates:
        first = list(content)[:3] if isinstance(content, Mapping) else [f"a {type(content).__name__}"]
        raise UserError(
            f"{path} is not a Vision Transformer of torchvision, timm, DeiT or this project: it contains "
            f"{', '.join(map(str, first)) or 'nothing'} …"
        )
    averaged = [one for one in candidates if _AVERAGED.search(one.place)]
    if not averaged and any(one.keys == ("current_model_state",) for one in candidates):
        averaged = [one for one in candidates if one.keys == ("state_dict",)]  # Lightning's WeightAveraging
    chosen = averaged or candidates
    if len(chosen) > 1:
        raise UserError(
            f"{path} has several models ({', '.join(one.place for one in chosen)}); "
            'save one of them alone, with torch.save(model.state_dict(), "weights.pth")'
        )
    (model,) = chosen
    inside = {n.removeprefix(model.prefix): n for n in model.names if n.startswith(model.prefix)}
    names = {ours: inside[theirs] for ours, theirs in our_names(inside).items()}
    shapes = our_shapes({ours: model.shapes[name] for ours, name in names.items()})
    report = [f"taken: EMA of the weights ({model.place})"] if averaged else []
    models = tuple(one.prefix for one in candidates if one.keys == model.keys)
    if outside := [n for n in model.names if not n.startswith(models) and not n.endswith("n_averaged")]:
        report.append(f"not part of the model: {', '.join(outside)}")
    raw = {ours: model.names[name] for ours, name in names.items()}
    return WeightFile(path, raw, shapes, model.keys, report, heads)


def _whole_number(find: Callable[[], Any]) -> int | None:
    """A number that a description of a model may contain; None if it does not."""
    try:
        found = find()
    except (ValueError, LookupError, TypeError, yaml.YAMLError):
        return None
    return found if isinstance(found, int) else None
