"""Kernel launches and GPU memory of one training step of each recipe, at its own batch size, without a GPU.

python benchmarks/gpu_counts.py [--levers] [--quick] [--out FILE]

The steps run on a simulated GPU (tests/null_gpu), on which no kernel runs.  torch's own code runs on it: memory is what
its allocator asks for, and launches are what it and Triton's compiled code would launch.  Each recipe has the share of
its batch that one of the GPUs of its command has.  Figures are of an A100 with 40 GB and an H100 with 80 GB.  With
`--levers`, of an H100 and of changes of code or settings, which on_gpu/speed.py measures on a real GPU.  The last line
is one JSON object with all figures.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.gpu_runs import RECIPES
from tests.helpers.gpu_steps import CARDS, count, count_lever
from tests.helpers.null_gpu import Card, build, missing
from tests.helpers.null_gpu_ranks import NullGpu
from vit.run.command import run_command

QUICK: list[tuple[str, Card]] = [("vit_ti16_deit", "a100")]
GRAPHS = ("--cuda_graphs", "true")
LEVERS: list[tuple[str, str | None, tuple[str, ...]]] = [
    *((recipe, None, settings) for recipe in ("vit_b16_deit", "vit_b16", "vit_ti16_deit") for settings in ((), GRAPHS)),
    ("vit_b16_deit", "combo_kernels", ()),
    *(("vit_b16", lever, ()) for lever in ("groups_of_1", "groups_of_2", "groups_of_4", "groups_of_12")),
    *(("vit_b16_deit", lever, ()) for lever in ("groups_of_1", "groups_of_4", "one_graph")),
    *(("vit_s16_90ep", None, settings) for settings in ((), GRAPHS)),
]
COLUMNS = {
    "images": "images",
    "micro_batches": "micro-batches",
    "launches": "launches",
    "launches_augmentation": "of augmentation",
    "waits": "host waits",
    "allocated_gib": "allocated, GiB",
    "reserved_gib": "reserved, GiB",
}
LEVER_COLUMNS = COLUMNS | {"host_ms": "host, ms", "compiled_gb": "compiled, GB"}


def print_row(name: str, figures: dict[str, Any], columns: dict[str, str]) -> None:
    """One line of the table."""
    cells = ["does not fit into the memory"]
    if figures["fits"]:
        cells = ["" if figures[key] is None else f"{figures[key]:,}" for key in columns]
    print(f"{name:<32}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def count_all(cases: list[tuple[str, Card]]) -> dict[str, dict[str, Any]]:
    """The figures of each recipe on each card, which are printed as a table."""
    figures: dict[str, dict[str, Any]] = {}
    print_header(COLUMNS)
    with built_gpu() as null_gpu:
        for recipe, card in cases:
            figures.setdefault(recipe, {})[card] = count(null_gpu, recipe, card)
            print_row(f"{recipe}, {card} {CARDS[card]} GB", figures[recipe][card], COLUMNS)
    return figures


def count_levers(figures: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Adds the figures of each change, one after the other, and prints them as a table."""
    print_header(LEVER_COLUMNS)
    with built_gpu() as null_gpu:
        for recipe, lever, settings in LEVERS:
            name = " ".join([recipe, *filter(None, [lever]), *settings])
            figures[name] = count_lever(null_gpu, recipe, lever, *settings)
            print_row(name, figures[name], LEVER_COLUMNS)
            yield


def print_header(columns: dict[str, str]) -> None:
    """The first line of the table."""
    print(f"{'one step of one GPU':<32}" + "".join(f"{column:>17}" for column in columns.values()))


@contextmanager
def built_gpu() -> Iterator[NullGpu]:
    """A null GPU in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        null_gpu = NullGpu(Path(folder))
        yield null_gpu
        null_gpu.stop()


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="take less than 50 seconds, with one recipe only")
    parser.add_argument("--levers", action="store_true", help="changes of the code instead of all recipes; 20 minutes")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    why = missing()
    if why:
        sys.exit(f"gpu_counts.py: {why}")
    figures: dict[str, Any] = {"torch": torch.__version__}
    if options.levers:
        for _ in count_levers(figures.setdefault("levers", {})):
            if options.out:  # so that it has what was counted, if this is stopped
                options.out.write_text(json.dumps(figures, indent=2) + "\n")
    else:
        cases = QUICK if options.quick else [(recipe, card) for recipe in RECIPES for card in CARDS]
        figures["recipes"] = count_all(cases)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
