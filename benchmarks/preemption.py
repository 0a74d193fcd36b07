"""What other trainers do when a signal comes, a checkpoint is damaged or cannot be written, or the loss is not finite.

python benchmarks/preemption.py --timm CLONE --torchvision CLONE --lightning

Each one trains for three epochs on 48 images, on this machine's CPU.  Slurm is imitated: `scontrol` is a script that
records its call, and ends the process that called it.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from PIL import Image

from benchmarks.other_trainers.experiment import Experiment
from benchmarks.other_trainers.trainers import BATCH, CLASSES, IMAGES, lightning, timm, torchvision

SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGTERM")


def signals(experiment: Experiment, found: dict[str, object], names: Sequence[str] = SIGNALS) -> None:
    """A signal in the middle of the second epoch: what is saved then, and what the resumed run trains on."""
    share = IMAGES // experiment.trainer.ranks
    at = share + BATCH * (share // BATCH // 2)
    first = experiment.start("undisturbed")
    experiment.start("again")
    found["undisturbed"] = {"codes": first.codes, "twice the same bits": experiment.same("undisturbed", "again")}
    for name in names:
        experiment.requeues.unlink(missing_ok=True)
        stopped = experiment.start(name, signal=name, at=at)
        after = experiment.files(name)
        requeues = experiment.requeues.read_text().splitlines() if experiment.requeues.exists() else []
        resumed = experiment.start(name, resume=True)
        interrupted = [image for rank in stopped.opened for image in rank[share:at]]
        epoch = [image for rank in resumed.opened for image in rank[: len(rank) - share]]
        times = Counter([*interrupted, *epoch])
        found[name] = {
            "codes": stopped.codes,
            "images of the epoch before the signal": len(interrupted),
            "images opened after the signal": len(stopped.images) - experiment.trainer.ranks * at,
            "files": sorted(file for file in after if "args" not in file),
            "requeued": requeues,
            "resumed": resumed.codes,
            "images of the epoch after resuming": len(epoch),
            "images trained twice in that epoch": sum(number > 1 for number in times.values()),
            "images never trained in that epoch": IMAGES - len(times),
            "order of the next epoch as undisturbed": [rank[-share:] for rank in resumed.opened]
            == [rank[-share:] for rank in first.opened],
            "same bits as undisturbed": experiment.same(name, "undisturbed") if set(resumed.codes) == {0} else None,
        }


def dead_rank(experiment: Experiment, found: dict[str, object]) -> None:
    """A rank is killed in the second epoch: the last of several, or a single one under torchrun with one restart."""
    ranks, at = experiment.trainer.ranks, IMAGES // experiment.trainer.ranks + BATCH
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--max-restarts", "1"]
    prefix = [] if ranks > 1 else [*launcher, "--no-python"]
    ended = experiment.start("dead-rank", signal="SIGKILL", at=at, first_rank=ranks - 1, prefix=prefix)
    opened = [len(images) for images in ended.opened]
    found["dead rank"] = {"under torchrun": ranks == 1, "codes": ended.codes, "images opened": opened, "killed at": at}


def damage(experiment: Experiment, found: dict[str, object]) -> None:
    """The newest checkpoint is cut in half, and an older one is there."""
    folder = experiment.folder / "damaged"
    shutil.copytree(experiment.folder / "undisturbed", folder)
    names = [folder / experiment.trainer.saved, *folder.glob("hpc_ckpt_*.ckpt")]
    for path in [path for path in names if path.exists()]:
        content = path.read_bytes()
        path.unlink()  # it may have another name, which stays whole
        path.write_bytes(content[: len(content) // 2])
    if experiment.trainer.on_slurm:
        shutil.copy(names[0], folder / "hpc_ckpt_1.ckpt")
    ended = experiment.start("damaged", resume=True)
    found["damaged"] = {"codes": ended.codes, "last line": ended.last_line, "images": len(ended.images)}


def unwritable(experiment: Experiment, found: dict[str, object]) -> None:
    """Files cannot become larger than a part of a checkpoint, as on a disk that is full."""
    ended = experiment.start("unwritable", prefix=["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh"])  # 512 bytes each
    found["unwritable"] = {"codes": ended.codes, "last line": ended.last_line, "images": len(ended.images)}


def not_finite(experiment: Experiment, found: dict[str, object]) -> None:
    """The learning rate is 1e30: after a step the loss is not finite."""
    ended = experiment.start("not-finite", lr="1e30")
    words = ended.output.lower().split()
    bad = False
    if (experiment.folder / "not-finite" / experiment.trainer.saved).exists():
        bad = any(not tensor.isfinite().all() for tensor in experiment.weights("not-finite").values())
    found["not finite"] = {
        "codes": ended.codes,
        "images": len(ended.images),
        "losses printed as nan": sum("nan" in word for word in words),
        "saved weights that are not finite": bad,
        "last line": ended.last_line,
    }


def make_images(folder: Path) -> None:
    """Small random images of a few classes, in train/ and val/."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", IMAGES), ("val", 8)):
        for i in range(number):
            path = folder / split / f"class-{i % CLASSES}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path)


def main() -> None:
    """The command line; prints JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--timm", type=Path, metavar="CLONE", help="clone of huggingface/pytorch-image-models")
    parser.add_argument("--torchvision", type=Path, metavar="CLONE", help="clone of pytorch/vision")
    parser.add_argument("--lightning", action="store_true", help="the installed one: pip install lightning")
    options = parser.parse_args()
    trainers = [timm(options.timm.resolve())] if options.timm else []
    trainers += [torchvision(options.torchvision.resolve())] if options.torchvision else []
    trainers += [lightning()] if options.lightning else []
    if not trainers:
        sys.exit("nothing to try; name at least one of --timm, --torchvision and --lightning")
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "data")
        for trainer in trainers:
            experiment = Experiment(trainer, Path(folder) / "data", Path(folder) / trainer.name)
            found = dict[str, object]()
            for part in (signals, dead_rank, damage, unwritable, not_finite):
                part(experiment, found)
                print(f"{trainer.name}: {part.__name__}", file=sys.stderr, flush=True)
            out[trainer.name] = found
    versions = {name: _version(name) for name in ("torch", "timm", "torchvision", "lightning")}
    print(json.dumps(out | {"installed": versions}, indent=2))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
