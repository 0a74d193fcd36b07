"""Kernel launches and GPU memory of one training step of each recipe, at its own batch size, without a GPU.

python benchmarks/gpu_counts.py [--quick] [--out FILE]

The steps run on a simulated GPU (tests/null_gpu), on which no kernel runs.  torch's own code runs on it: memory is what
its allocator asks for, and launches are what it and Triton's compiled code would launch.  Each recipe has the share of
its batch that one of the GPUs of its command has.  Figures are of an A100 with 40 GB and an H100 with 80 GB.  The last
line is one JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.gpu_runs import RECIPES
from tests.helpers.gpu_steps import CARDS, count
from tests.helpers.null_gpu import Card, build, missing
from tests.helpers.null_gpu_ranks import NullGpu
from vit.run.command import run_command

QUICK: list[tuple[str, Card]] = [("vit_ti16_deit", "a100")]
COLUMNS = {
    "images": "images",
    "micro_batches": "micro-batches",
    "launches": "launches",
    "launches_augmentation": "of augmentation",
    "waits": "host waits",
    "allocated_gib": "allocated, GiB",
    "reserved_gib": "reserved, GiB",
}


def print_row(name: str, figures: dict[str, Any]) -> None:
    """One line of the table."""
    cells = [f"{figures[key]:,}" for key in COLUMNS] if figures["fits"] else ["does not fit into the memory"]
    print(f"{name:<32}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def count_all(cases: list[tuple[str, Card]]) -> dict[str, dict[str, Any]]:
    """The figures of each recipe on each card, which are printed as a table."""
    figures: dict[str, dict[str, Any]] = {}
    print(f"{'one step of one GPU':<32}" + "".join(f"{column:>17}" for column in COLUMNS.values()))
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        null_gpu = NullGpu(Path(folder))
        for recipe, card in cases:
            figures.setdefault(recipe, {})[card] = count(null_gpu, recipe, card)
            print_row(f"{recipe}, {card} {CARDS[card]} GB", figures[recipe][card])
        null_gpu.stop()
    return figures


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds, with one recipe only")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    why = missing()
    if why:
        sys.exit(f"gpu_counts.py: {why}")
    figures = {
        "torch": torch.__version__,
        "recipes": count_all(QUICK if options.quick else [(recipe, card) for recipe in RECIPES for card in CARDS]),
    }
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
