"""The least time of a training step: the work of each of its parts, divided by what a card was measured to do.

python benchmarks/roofline.py [--quick] [--card FILE] [RECIPE …]

Work is computed from the recipe: floating-point operations, and the bytes that must be read and written if each kernel
reads its inputs once and writes its outputs once.  The limits of the card (matrix products, attention, copies) and the
measured steps are those that `benchmarks/gpu.py` wrote to FILE.  Needs neither a GPU nor torch.  The last line is one
JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vit.config.parser import load_config
from vit.config.schema import Config
from vit.config.sections import ModelConfig
from vit.run.command import run_command

RECIPES = ("vit_b16", "vit_b16_deit", "vit_s16_90ep")
GPUS = 4  # among which a recipe's global batch is divided
RESULTS = ROOT / "benchmarks" / "results"
MEASURED_HEADS, MEASURED_TOKENS = 384 * 12, 197  # of the attention that on_gpu/ceilings.py measures; 64 features each
# Bytes per token and feature that the pointwise kernels of a block read and write: the residual stream and its gradient
# are float32 (4), activations bf16 (2).  Those of GELU are per hidden feature of the MLP.
BLOCK_BYTES = {
    "norm1: x -> h": 4 + 2,
    "x + attention, norm2: x, y -> x, h": 4 + 2 + 4 + 2,
    "x + MLP: x, y -> x": 4 + 2 + 4,
    "gradient to bf16, bias of down: g -> g": 4 + 2,
    "norm2 backward: x, dh, g -> g, bf16 g": 4 + 2 + 4 + 4 + 2,
    "norm1 backward: x, dh, g -> g": 4 + 2 + 4 + 4,
}
GELU_BYTES = {"GELU: u -> h": 2 + 2, "GELU backward, bias of up: u, dh -> du": 2 + 2 + 2}
WEIGHT_BYTES = 12  # per weight and micro-batch: float32 -> bf16, and its gradient bf16 -> float32
END_BYTES = 2 + 4 + 4 + 2 + 4  # per token and feature: embedding -> tokens; gradient -> bf16; its zeros


@dataclass(frozen=True)
class Card:
    """What a card was measured to do."""

    name: str
    bandwidth: float  # bytes read and written per second, by a copy
    flops: float  # FLOP/s of the matrix products of a block of ViT-B, forward and backward
    attention: float  # seconds per head of 64 features and 197 tokens, forward and backward
    attention_not_exact: float  # the same, of the fastest kernel, whose bits differ from call to call

    @classmethod
    def read(cls, path: Path) -> tuple["Card", dict[str, float]]:
        """The card of a file of `benchmarks/gpu.py`, and the measured milliseconds of each step by its name."""
        figures = json.loads(path.read_text())
        speed = {check["name"]: check["figures"] for check in figures["parts"]["speed"]}
        limits = speed["ceilings"]
        work = seconds = 0.0
        for layer, teraflops in limits["linear_teraflops"].items():
            inputs, outputs = map(int, layer.split(" -> "))
            work += len(teraflops) * inputs * outputs
            seconds += sum(inputs * outputs / (1e12 * each) for each in teraflops)
        milliseconds = limits["attention_ms"]
        exact = milliseconds.get("flash_attention_deterministic", milliseconds["flash_attention"])
        fastest = min(v for v in milliseconds.values() if isinstance(v, float))
        card = cls(
            figures["machine"]["gpu"],
            1e12 * limits["copy_terabytes_per_second"],
            work / seconds,
            1e-3 * exact / MEASURED_HEADS,
            1e-3 * fastest / MEASURED_HEADS,
        )
        return card, {name: step["ms"] for name, step in speed.items() if "ms" in step}


class Part(NamedTuple):
    """One part of a step."""

    name: str
    flops: float
    bytes: float
    seconds: float


def linear_layers(model: ModelConfig) -> list[tuple[int, int, int]]:
    """Tokens per image, inputs and outputs of each linear layer."""
    patches, D = (model.image_size // model.patch_size) ** 2, model.width
    N = tokens(model)
    block = [(N, D, 3 * D), (N, D, D), (N, D, model.mlp_dim), (N, model.mlp_dim, D)]
    return [(patches, 3 * model.patch_size**2, D), *(model.depth * block), (1, D, model.num_classes)]


def tokens(model: ModelConfig) -> int:
    """Tokens per image."""
    return (model.image_size // model.patch_size) ** 2 + (model.pool == "cls")


def parameters(model: ModelConfig) -> int:
    """Number of trained values."""
    D, learned = model.width, model.positions == "learned"
    matrices = sum(inputs * outputs + outputs for _, inputs, outputs in linear_layers(model))
    scales = 2 * D * model.depth * (model.layer_scale > 0)
    return matrices + (2 * model.depth + 1) * 2 * D + scales + D * (model.pool == "cls") + learned * tokens(model) * D


def parts(cfg: Config, card: Card) -> list[Part]:
    """The parts of a step of one GPU; each takes as long as the slower of its operations and its bytes."""
    model, images = cfg.model, cfg.global_batch // GPUS
    micro_batches = images // cfg.micro_batch
    layers, N, D = linear_layers(model), tokens(model), model.width
    weights = sum(inputs * outputs for _, inputs, outputs in layers)
    linear_bytes = sum(2 * images * n * (i + o) + 2 * micro_batches * i * o for n, i, o in layers)
    block = sum(BLOCK_BYTES.values()) * D + sum(GELU_BYTES.values()) * model.mlp_dim
    pixels = 3 * model.image_size**2
    heads = images * model.depth * model.heads * (D / model.heads / 64) * (N / MEASURED_TOKENS) ** 2
    mixed = 8 * (cfg.augment.mixup > 0 or cfg.augment.cutmix > 0)  # float32 images are read and written
    work = {
        "linear layers": (6.0 * images * sum(n * i * o for n, i, o in layers), 3 * linear_bytes),
        "attention": (12.0 * images * model.depth * N * N * D, 24.0 * images * model.depth * N * D),
        "pointwise operations of the blocks": (
            0.0,
            float(images * N * model.depth * block + WEIGHT_BYTES * micro_batches * weights),
        ),
        "patches, positions, head, loss": (0.0, float(images * (6 * pixels + END_BYTES * N * D))),
        "sum, clipping, optimizer, EMA": (0.0, float(parameters(model) * update_bytes(cfg, micro_batches))),
        "augmentation": (0.0, float(images * pixels * (1 + 2 * cfg.augment.randaugment_ops + 4 + mixed))),
    }
    times = {name: max(flops / card.flops, size / card.bandwidth) for name, (flops, size) in work.items()}
    times["attention"] = heads * (card.attention if cfg.exact == "bits" else card.attention_not_exact)
    return [Part(name, flops, size, times[name]) for name, (flops, size) in work.items()]


def update_bytes(cfg: Config, micro_batches: int) -> int:
    """Bytes per parameter: sums of micro-batches, DDP's buckets, norm and clipping, AdamW or LAMB, EMA."""
    clipping = 4 + 8 * (cfg.optim.clip_norm > 0 and cfg.optim.optimizer != "adamw")  # AdamW clips as it reads
    return 12 * (micro_batches - 1) + 8 + clipping + 28 + 12 * (cfg.optim.ema_decay > 0)


def figures_of(recipe: str, card: Card, measured: dict[str, float]) -> dict[str, Any]:
    """The table of one recipe; milliseconds, 1e12 operations and 1e9 bytes of each part."""
    cfg = load_config(ROOT / "configs" / f"{recipe}.yaml")
    images, rows = cfg.global_batch // GPUS, parts(cfg, card)
    ms = 1e3 * sum(part.seconds for part in rows)
    found = measured.get(f"step of {recipe}")
    return {
        "images": images,
        "micro_batches": images // cfg.micro_batch,
        "parts": {
            part.name: {
                "teraflop": round(part.flops / 1e12, 2),
                "gigabytes": round(part.bytes / 1e9, 1),
                "ms": round(1e3 * part.seconds, 1),
            }
            for part in rows
        },
        "least_ms": round(ms, 1),
        "images_per_s": round(1e3 * images / ms),
        "measured_ms": found,
        "gap_ms": None if found is None else round(found - ms, 1),
    }


def print_table(recipe: str, figures: dict[str, Any]) -> None:
    """Prints the parts of one recipe."""
    print(f"\n{recipe}, {figures['images']} images in {figures['micro_batches']} micro-batches")
    print(f"{'part':<38}{'TFLOP':>8}{'GB':>8}{'ms':>8}")
    for name, part in figures["parts"].items():
        print(f"{name:<38}{part['teraflop'] or '':>8}{part['gigabytes']:>8}{part['ms']:>8}")
    print(f"{'sum':<54}{figures['least_ms']:>8}   {figures['images_per_s']:,} images/s")
    print(f"{'measured':<54}{figures['measured_ms'] or 'not yet':>8}")


def main() -> None:
    """Prints tables, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help=f"recipes of configs/ (default: {', '.join(RECIPES)})"
    )
    parser.add_argument("--quick", action="store_true", help="nothing else: it takes less than a second")
    parser.add_argument("--card", type=Path, default=RESULTS / "gpu.json", help="figures that benchmarks/gpu.py wrote")
    options = parser.parse_args()
    unknown = [name for name in options.recipes if not (ROOT / "configs" / f"{name}.yaml").is_file()]
    if unknown:
        parser.error(f"no recipe {', '.join(unknown)} in configs/")
    try:
        card, measured = Card.read(options.card)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{options.card} has no figures of a card, which benchmarks/gpu.py --out FILE writes: {error!r}")
    print(f"{card.name}: copies {card.bandwidth / 1e12:.2f} TB/s, matrix products {card.flops / 1e12:.0f} TFLOP/s")
    figures = {recipe: figures_of(recipe, card, measured) for recipe in options.recipes or RECIPES}
    for recipe, each in figures.items():
        print_table(recipe, each)
    print(json.dumps({"gpu": card.name, "matrix_teraflops": round(card.flops / 1e12), "recipes": figures}))


if __name__ == "__main__":
    run_command(main)
