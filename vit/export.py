"""Writes the weights of a run's checkpoint as a safetensors file, for others to load.

python -m vit.export runs/vit_b16 --to vit_b16.safetensors
"""

import argparse
import sys
from pathlib import Path

import yaml
from safetensors.torch import save_file
from torch import Tensor

from vit import checkpoint
from vit.checkpoint import DamagedError
from vit.ledger import RunFolder, read_lines
from vit.log import best


def choose(run: RunFolder, which: str) -> Path:
    """The checkpoint that `which` means: newest, best (by validation) or a step.  Raises ValueError."""
    there = {checkpoint.step_of(path): path for path in checkpoint.find(run.checkpoints)}
    if not there:
        raise ValueError(f"{run.checkpoints} holds no checkpoint")
    if which == "newest":
        return there[max(there)]
    evaluation = best([r for r in read_lines(run.metrics) if r["step"] in there])
    step = evaluation["step"] if which == "best" and evaluation is not None else which
    if not str(step).isdigit() or int(step) not in there:
        raise ValueError(
            f"{run.path} has no checkpoint {which!r}; there are steps {', '.join(map(str, sorted(there)))}"
        )
    return there[int(step)]


def weights(path: Path, average: bool | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a checkpoint under the model's own names, every digest checked, and what they are.

    `average` asks for the averaged weights; None takes them if there are any.  Raises ValueError and DamagedError.
    """
    tensors, manifest = checkpoint.load(path)
    rooms = {name.partition(".")[0] for name in tensors}
    if average and "average" not in rooms:
        raise ValueError(f"{path} has no averaged weights: the run had optim.ema_decay: 0")
    room = "average" if "average" in rooms and average is not False else "model"
    about = {"step": str(manifest["step"]), "weights": room, "config": manifest["about"]["config"], "format": "pt"}
    return {name.removeprefix(f"{room}."): t for name, t in tensors.items() if name.startswith(f"{room}.")}, about


def main(args: list[str] | None = None) -> None:
    """The command line; exit code 2 and one line if there is nothing to export."""
    parser = argparse.ArgumentParser(prog="vit.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--to", type=Path, required=True, help="the .safetensors file")
    parser.add_argument("--which", default="newest", metavar="STEP", help="newest, best or a step (default: newest)")
    parser.add_argument(
        "--average", action=argparse.BooleanOptionalAction, help="the averaged weights (default: if there are any)"
    )
    options = parser.parse_args(args)
    try:
        path = choose(RunFolder(options.run), options.which)
        tensors, about = weights(path, options.average)
    except (ValueError, DamagedError) as error:
        print(f"vit.export: {error}", file=sys.stderr)
        sys.exit(2)
    aside = options.to.with_name(f"{options.to.name}.tmp")
    save_file(tensors, aside, about)
    aside.rename(options.to)
    kind, size = yaml.safe_load(about["config"])["model"], sum(tensor.numel() for tensor in tensors.values())
    which = "averaged weights" if about["weights"] == "average" else "weights"
    print(f"{options.to}: {size:,} {which} of step {about['step']}, {kind['depth']} blocks of width {kind['width']}")


if __name__ == "__main__":
    main()
