"""Whether weights fit a model, from names and shapes alone.  Does not import torch, so that a login node can check it.

Weights that would change the model's output are never left out: what the model has no place for is refused.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.config.user_error import UserError, first_few
from vit.model.weight_names import Shape

# Parts of other architectures, by substrings of their weights' names; no setting of this model gives them.
_FOREIGN = {
    ".q_norm.": "qk norm",
    ".k_norm.": "qk norm",
    "reg_token": "register tokens",
    "register_tokens": "register tokens",
    "storage_tokens": "register tokens",
    "dist_token": "a distillation token",
    "fc_norm.": "a norm after pooling",
    "norm_pre.": "a norm before the blocks",
    "rope": "rotary positions",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    "attn_pool.": "attention pooling",
    ".w12.": "a gated MLP",
    ".w3.": "a gated MLP",
    "fc1_g.": "a gated MLP",
}
# Without effect on the output of the encoder: masked pretraining, MAE's decoder, counters of averages and of FLOPs.
_HARMLESS = re.compile(r"mask_token|decoder_.*|n_averaged|(.*\.)?total_(ops|params)")
FEATURES_PER_HEAD = 64
_LAYER_SCALE = 1e-5  # an initial value, for weights that have it; they replace it
_HEAD = ("head.", "heads.", "head_dist.", "pre_logits.")


@dataclass(frozen=True)
class Fit:
    """What is done with each of the given weights."""

    loaded: list[str]  # our names
    positions: Literal["learned", "fixed", "none"]  # fixed: given, but the model computes them; they must be equal
    report: list[str]  # one line each on what is loaded, initialized, resized and ignored, with all names


def model_shapes(cfg: ModelConfig) -> dict[str, Shape]:
    """Name and shape of each weight of `VisionTransformer(cfg)`, in the order of its state dict."""
    D, H, P, C = cfg.width, cfg.mlp_dim, cfg.patch_size, cfg.num_classes
    out: dict[str, Shape] = {"cls_token": (1, 1, D)} if cfg.pool == "cls" else {}
    if cfg.positions == "learned":
        out["positions"] = (1, _tokens(cfg), D)
    out |= _linear("patches.proj", 3 * P * P, D)
    for block in (f"blocks.{i}." for i in range(cfg.depth)):
        out |= _norm(block + "norm1", D)
        out |= _linear(block + "attention.qkv", D, 3 * D) | _linear(block + "attention.out", D, D)
        out |= _norm(block + "norm2", D)
        out |= _linear(block + "mlp.up", D, H) | _linear(block + "mlp.down", H, D)
        if cfg.layer_scale:
            out |= {f"{block}scale1.gamma": (D,), f"{block}scale2.gamma": (D,)}
    return out | _norm("norm", D) | _linear("head", D, C)


def is_block_matrix(name: str, shape: Shape) -> bool:
    """Whether it is the weight of a linear layer in a block: those that Muon updates."""
    return name.startswith("blocks.") and len(shape) == 2


def state_bytes(cfg: Config) -> int:
    """Size of a checkpoint: float32 weights, the optimizer's two moments (of Muon one) and, if enabled, the EMA."""
    shapes = model_shapes(cfg.model)
    matrices = sum(math.prod(shape) for name, shape in shapes.items() if is_block_matrix(name, shape))
    values = sum(map(math.prod, shapes.values())) * (4 if cfg.optim.ema_decay else 3)
    return 4 * (values - (matrices if cfg.optim.optimizer == "muon" else 0))


def _tokens(cfg: ModelConfig) -> int:
    return (cfg.image_size // cfg.patch_size) ** 2 + (cfg.pool == "cls")


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def check_fit(
    given: Mapping[str, Shape],
    cfg: ModelConfig,
    source: str = "the file",
    heads: int | None = None,
    new_head: bool = False,
) -> Fit:
    """Decides what is done with weights under our names.  Raises UserError that names `source` and all that is wrong.

    `heads` is the number of attention heads of the weights, None if it is not known: no shape depends on it.  With
    `new_head`, their head is left out, whatever its classes.
    """
    given = {name: shape for name, shape in given.items() if not (new_head and name.startswith("head."))}
    own = model_shapes(cfg)
    classes = given.get("head.weight", (0,))[0]
    other_head = classes != cfg.num_classes
    settings = list(_wrong_settings(given, cfg, heads, other_head))
    problems = [f"set {', '.join(settings)}"] if settings else []
    explained = _explained_names(given, cfg, {setting.split()[0] for setting in settings})

    loaded, ignored, unknown = [], [], []
    for name in given:
        if name.startswith(_HEAD) and other_head:
            ignored += [] if name in own else [name]
        elif name in own:
            loaded.append(name)
        elif name in ("cls_token", "positions") or _HARMLESS.fullmatch(name):
            ignored.append(name)
        elif not explained.fullmatch(name):
            unknown.append(name)
    problems += _without_setting(unknown)
    missing = [n for n in own if n not in given and not (n.startswith("head.") and other_head)]
    if missing := [n for n in missing if not explained.fullmatch(n)]:
        problems.append(f"it lacks {first_few(missing)}")

    report, positions = [], _position_kind(given, cfg)
    if positions == "learned" and len(given["positions"]) == 3:
        before = given["positions"][1]
        used = before - (cfg.pool == "mean" and "cls_token" in given)  # without that of the class token
        if used != _tokens(cfg):
            report.append(f"resized: positions, {before} to {_tokens(cfg)}")
            problems = problems or _resizing_problems(used, _tokens(cfg))
    if not problems:
        problems = [
            f"{name} has shape {given[name]}, but the model expects {own[name]}"
            for name in loaded
            if _without_length(name, given[name]) != _without_length(name, own[name])
        ][:1]
    if problems:
        raise UserError(f"{source} does not fit the model: {'; '.join(problems)}")
    if other_head:
        pretrained = f" (pretrained: {classes})" if classes else ""
        report.insert(0, f"initialized: head for {cfg.num_classes} classes{pretrained}")
    if ignored:
        report.append(f"ignored: {', '.join(ignored)}")
    return Fit(loaded, positions, [f"loaded: {sum(math.prod(own[name]) for name in loaded):,} weights", *report])


def _wrong_settings(given: Mapping[str, Shape], cfg: ModelConfig, heads: int | None, other_head: bool) -> Iterator[str]:
    """`model.depth to 12 (not 6)`, for each setting that the weights show to be another."""
    width, pixels = given["patches.proj.weight"]
    side = math.isqrt(pixels // 3)
    for name, value in {
        "patch_size": side if 3 * side * side == pixels else None,
        "width": width,
        "depth": _depth(given),
        "heads": heads,
        "mlp_dim": given.get("blocks.0.mlp.up.weight", (None,))[0],
    }.items():
        if value is not None and value != getattr(cfg, name):
            yield f"model.{name} to {value} (not {getattr(cfg, name)})"
    scaled = any(name.endswith((".scale1.gamma", ".scale2.gamma")) for name in given)
    if scaled and not cfg.layer_scale:
        yield "model.layer_scale to its initial value, e.g. 1e-5 (not 0: the weights have layer scale)"
    elif cfg.layer_scale and not scaled:
        yield f"model.layer_scale to 0 (not {cfg.layer_scale}: the weights have no layer scale)"
    if "positions" not in given and cfg.positions == "learned":
        yield "model.positions to sincos2d (not learned: the weights have no positions)"
    if "cls_token" not in given and cfg.pool == "cls":
        yield "model.pool to mean (not cls: the weights have no class token)"
    elif "cls_token" in given and cfg.pool == "mean" and not other_head:
        yield "model.pool to cls (not mean: the head was trained on the class token)"


def shown_settings(given: Mapping[str, Shape]) -> dict[str, Any]:
    """The model settings that names and shapes show, without `model.`; others are left out.

    No shape depends on the number of heads: they are taken to have FEATURES_PER_HEAD features, as those of ViT-Ti, S, B
    and L.  The image size is shown only by learned positions, and the initial value of LayerScale not at all.
    """
    width, pixels = given["patches.proj.weight"]
    side, has_class_token = math.isqrt(pixels // 3), "cls_token" in given
    patches = given["positions"][1] - has_class_token if len(given.get("positions", ())) == 3 else 0
    scaled = any(name.endswith(".scale1.gamma") for name in given)
    found: dict[str, Any] = {
        "image_size": side * math.isqrt(patches) if math.isqrt(patches) ** 2 == patches else 0,
        "patch_size": side if 3 * side * side == pixels else 0,
        "width": width,
        "depth": _depth(given),
        "heads": width // FEATURES_PER_HEAD if width % FEATURES_PER_HEAD == 0 else 0,
        "mlp_dim": given.get("blocks.0.mlp.up.weight", (0,))[0],
        "num_classes": given.get("head.weight", (0,))[0],
        "pool": "cls" if has_class_token else "mean",
        "positions": "learned" if "positions" in given else "sincos2d",
    }
    return {name: value for name, value in found.items() if value} | {"layer_scale": _LAYER_SCALE if scaled else 0.0}


def _depth(given: Mapping[str, Shape]) -> int:
    """The number of blocks."""
    return max((int(found[1]) + 1 for found in map(re.compile(r"blocks\.(\d+)\.").match, given) if found), default=0)


def _explained_names(given: Mapping[str, Shape], cfg: ModelConfig, settings: set[str]) -> re.Pattern[str]:
    """Matches the names of weights that are missing or unknown because of one of the wrong settings."""
    numbers = range(*sorted((_depth(given), cfg.depth)))  # of the blocks that only one of them has
    patterns = {
        "model.depth": rf"blocks\.({'|'.join(map(str, numbers))})\..*",
        "model.layer_scale": r"blocks\.\d+\.scale[12]\.gamma",
        "model.positions": "positions",
        "model.pool": "cls_token",
    }
    return re.compile("|".join(patterns[name] for name in patterns if name in settings) or r"(?!)")


def foreign_parts(given: Iterable[str]) -> list[str]:
    """The parts of other architectures that weights of these names belong to, each in words; no setting gives them."""
    names = [name for name in given if not (name.startswith(_HEAD) or _HARMLESS.fullmatch(name))]
    return _without_setting([name for name in names if any(substring in name for substring in _FOREIGN)])


def _without_setting(unknown: list[str]) -> list[str]:
    return [f"it has {part}, for which there is no setting" for part in _parts(unknown)]


def _parts(unknown: list[str]) -> list[str]:
    """The parts of the architecture that unknown weights belong to, with examples."""
    parts: dict[str, list[str]] = {}
    for name in unknown:
        part = next((part for substring, part in _FOREIGN.items() if substring in name), "")
        parts.setdefault(part, []).append(name)
    return [f"{part} ({first_few(names)})" if part else first_few(names) for part, names in parts.items()]


def _position_kind(given: Mapping[str, Shape], cfg: ModelConfig) -> Literal["learned", "fixed", "none"]:
    if "positions" not in given:
        return "none"
    return "learned" if cfg.positions == "learned" else "fixed"


def _without_length(name: str, shape: Shape) -> Shape:
    """The shape, for positions without the number of tokens, to which they are resized."""
    return shape[:1] + shape[2:] if name == "positions" else shape


def _resizing_problems(old: int, new: int) -> list[str]:
    try:
        position_grid(old, new)
    except UserError as error:
        return [str(error)]
    return []


def position_grid(old: int, new: int) -> tuple[int, int, int]:
    """How to resize `old` positions to `new` ones: the number of class tokens, and the sides of both grids of patches.

    Raises UserError if the patches do not form a square.
    """
    # 1 if both have a class token, that is, a square number of patches and one token more.
    class_tokens = int(all(math.isqrt(n - 1) ** 2 == n - 1 for n in (old, new)))
    old_side, new_side = (math.isqrt(n - class_tokens) for n in (old, new))
    if old_side**2 + class_tokens != old or new_side**2 + class_tokens != new:
        raise UserError(f"cannot resize {old} positions to {new}: the patches do not form a square")
    return class_tokens, old_side, new_side


def shortened(report: list[str]) -> str:
    """A report in one line to print: of long lists of names only the first ones."""
    lines = (line.partition(": ") for line in report)
    return "; ".join(f"{done}{colon}{first_few(names.split(', '))}" for done, colon, names in lines)
