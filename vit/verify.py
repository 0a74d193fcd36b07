"""Trains twice, once left alone and once killed at random moments on changing numbers of ranks, and compares all bits.

python -m vit.verify --config configs/demo.yaml --kills 20 --ranks 4,2,1
"""

import hashlib
import math
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config, to_yaml
from vit.data.dataset_manifest import read_dataset_manifest
from vit.kill_attempts import Attempt, EndedError, train_and_kill
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import TIMED

GROUPS = {"model": "weights", "optimizer": "moments", "average": "EMA of weights"}


@dataclass(frozen=True)
class Part:
    """One thing that a run leaves behind: what it is, and its values under their names, in their order."""

    what: str
    content: str  # how much of it there is
    values: dict[str, Any]

    @property
    def digest(self) -> str:
        """Eight digits that differ where a bit differs."""
        out = hashlib.sha256()
        for name, value in self.values.items():
            out.update(repr((name, (value.dtype, value.shape) if isinstance(value, Tensor) else value)).encode())
            if isinstance(value, Tensor):
                out.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return out.hexdigest()[:8]


def shortened(cfg: Config, steps: int) -> Config:
    """The same training on few images, so that `steps` steps are two epochs, and everything is written down."""
    there = read_dataset_manifest(cfg.data.train).samples
    # The epochs' ends fall inside of batches.
    limit = min(there, max(1, (steps * cfg.global_batch - cfg.global_batch // 3) // 2))
    epochs = math.ceil((steps * cfg.global_batch - cfg.global_batch // 3) / limit)
    return replace(
        cfg,
        epochs=epochs,
        data=replace(cfg.data, limit=limit),
        # An average changes nothing else, and is compared too.
        optim=replace(
            cfg.optim, warmup_epochs=min(cfg.optim.warmup_epochs, epochs / 4), ema_decay=cfg.optim.ema_decay or 0.99
        ),
        log=replace(cfg.log, every_steps=1, samples=True, wandb="off"),
    )


def parts(run: RunFolder) -> list[Part]:
    """All that a finished run leaves behind."""
    tensors, manifest = load_checkpoint(find_checkpoints(run.checkpoints)[0])
    out = []
    for prefix, what in GROUPS.items():
        named = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
        out.append(Part(what, f"{sum(t.numel() for t in named.values()):,} in {len(named)} tensors", named))
    out.append(Part("gradient scaler", f"of step {manifest['step']}", {"scaler": manifest["about"]["scaler"]}))
    curve = [{k: v for k, v in record.items() if k not in TIMED} for record in read_lines(run.metrics)]
    named_ = once(curve, lambda r: f"step {r['step']}{'' if 'loss' in r else ', evaluation'}")
    out.append(Part("learning curve", f"{len(curve)} records", named_))
    used = sorted(read_lines(run.samples), key=lambda r: (r["step"], r["shard"]))
    named_ = once(used, lambda r: f"step {r['step']}, micro-batch {r['shard']}")
    out.append(Part("sample ids", f"{sum(len(r['samples']) for r in used):,} of {len(used):,} micro-batches", named_))
    return out


def once(records: list[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """The records under their names; one that is there twice shows."""
    out: dict[str, Any] = {}
    for record in records:
        key = name(record)
        out[f"{key}, again" if key in out else key] = record
    return out


def samples_are_whole(run: RunFolder, samples: int) -> bool:
    """Whether each epoch that was trained to its end used each of `samples` images once."""
    used = sorted(read_lines(run.samples), key=lambda r: (r["step"], r["shard"]))
    stream = [i for record in used for i in record["samples"]]
    epochs = [stream[i : i + samples] for i in range(0, len(stream) - samples + 1, samples)]
    return bool(epochs) and all(sorted(epoch) == list(range(samples)) for epoch in epochs)


def first_difference(straight: Part, killed: Part) -> str | None:
    """Where two runs differ first, in words; None if they do not."""
    for name in [*straight.values, *(n for n in killed.values if n not in straight.values)]:
        if name not in straight.values or name not in killed.values:
            return f"{name} is only in the run that was {'killed' if name in killed.values else 'left alone'}"
        a, b = straight.values[name], killed.values[name]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return f"{name} is {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
            other = _bits(a) != _bits(b)
            if other.any():
                first = int(other.reshape(-1).int().argmax())
                return (
                    f"{name}: {int(other.sum()):,} of {a.numel():,} values differ; "
                    f"the first, at {first:,}, is {a.reshape(-1)[first].item()!r} and {b.reshape(-1)[first].item()!r}"
                )
        elif a != b and isinstance(a, dict):
            key = next(k for k in [*a, *b] if k not in a or k not in b or a[k] != b[k])
            return f"{name}: {key} is {a.get(key, 'absent')} and {b.get(key, 'absent')}"
    return None if list(straight.values) == list(killed.values) else "the same records in another order"


def _bits(tensor: Tensor) -> Tensor:
    """(…) -> (…) integers, which are the same only if all bits are: of -0 and 0, and of NaNs too."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def compare(straight: RunFolder, killed: RunFolder, samples: int) -> list[str]:
    """Prints a table, and returns the differences."""
    print(f"{'':<18}{'':<32}{'left alone':<12}{'killed':<12}")
    differences = []
    for a, b in zip(parts(straight), parts(killed), strict=True):
        difference = first_difference(a, b)
        print(f"{a.what:<18}{a.content:<32}{a.digest:<12}{b.digest:<12}{'differ' if difference else 'same'}")
        differences += [f"{a.what}: {difference}"] if difference else []
    whole = [samples_are_whole(run, samples) for run in (straight, killed)]
    answers = ["yes" if w else "no" for w in whole]
    print(f"{'whole epochs':<18}{f'each of {samples:,} samples once':<32}{answers[0]:<12}{answers[1]:<12}")
    return differences if all(whole) else [*differences, "sample ids: an epoch is not each sample once"]


def cost(bits: RunFolder, samples: RunFolder) -> float:
    """How much longer a step takes for the bits' sake: the ratio of medians, less 1."""
    pace = [
        statistics.median([r["images_per_second"] for r in read_lines(run.metrics) if "loss" in r][5:])
        for run in (bits, samples)
    ]
    return pace[1] / pace[0] - 1


def main(args: list[str] | None = None) -> None:
    """The command line.  Exit code 0: identical; 1: not, or the training itself failed; 2: wrong input."""
    parser = config_parser("vit.verify", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often it is killed (default: 20)")
    parser.add_argument("--ranks", default="4,2,1", help="numbers of ranks, of each attempt in turn (default: 4,2,1)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps, two epochs of few images (default: 60)")
    parser.add_argument("--kill-seed", type=int, default=0, help="of the random moments and victims (default: 0)")
    parser.add_argument("--fresh", action="store_true", help="start all ranks by torchrun, from nothing")
    parser.add_argument("--cost", action="store_true", help="say what the bits cost; on GPUs it is always said")
    parser.add_argument("--folder", type=Path, help="keep both runs there (default: a temporary folder)")
    cfg, options = parse_config(parser, args)
    try:
        if not re.fullmatch(r"\d+(,\d+)*", options.ranks):
            raise ValueError(f"--ranks {options.ranks!r}: numbers with commas between them are wanted, as 4,2,1")
        ranks = [int(n) for n in options.ranks.split(",")]
        cfg = shortened(cfg, options.steps)
        for n in ranks:
            cfg.check_ranks(n)
        if options.folder and options.folder.exists() and any(options.folder.iterdir()):
            raise ValueError(f"--folder {options.folder} is not empty")
    except ValueError as error:
        parser.error(str(error))
    folder = Path(tempfile.mkdtemp(prefix="vit-verify-")) if options.folder is None else options.folder
    try:
        differences = verify(cfg, folder.absolute(), ranks, options)
    except EndedError as error:
        sys.exit(f"vit.verify: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the ranks follow
    for difference in differences:
        print(f"  {difference}")
    if differences:
        sys.exit(f"NOT identical; both runs are in {folder}")
    if options.folder is None:
        shutil.rmtree(folder)


def verify(cfg: Config, folder: Path, ranks: list[int], options: Namespace) -> list[str]:
    """Trains both runs and compares them; returns the differences."""
    begun = time.monotonic()
    straight, killed = RunFolder(folder / "straight"), RunFolder(folder / "killed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(cfg))
    arguments = ["--config", str(folder / "config.yaml"), "--checkpoint.every_minutes"]
    seldom, often = [*arguments, "1e6"], [*arguments, "1e-6"]
    samples = min(cfg.data.limit, int(read_dataset_manifest(cfg.data.train).samples))
    steps = cfg.steps(cfg.epochs, samples)
    print(
        f"{steps} steps of {cfg.global_batch} images, exact: {cfg.exact}, on {ranks[0]} ranks, left alone …", flush=True
    )
    Attempt(straight, seldom, ranks[0], options.fresh).finish()
    print(f"the same, killed {options.kills} times, on {options.ranks} ranks in turn …", flush=True)
    print(f"{'kill':>4}{'after':>9}{'at step':>9}{'ranks':>7}{'steps lost':>12}  killed", flush=True)
    kills = train_and_kill(killed, often, steps, ranks, options.kills, options.kill_seed, options.fresh)
    count = 0
    for count, kill in enumerate(kills, 1):
        told = f"{count:>4}{kill.seconds:>7.2f} s{kill.step:>9}{kill.ranks:>7}{kill.lost:>12}  {kill.victim}"
        print(told, flush=True)
    print()
    differences = compare(straight, killed, samples)
    if options.cost or (straight.last("started") or {}).get("device") == "cuda":
        other = RunFolder(folder / "samples")
        Attempt(other, [*seldom, "--exact", "samples"], ranks[0], options.fresh).finish()
        more = 100 * cost(straight, other)
        print(f"exact: bits makes a step {more:+.1f} % longer than exact: samples, on {ranks[0]} ranks")
    if count < options.kills:
        print(f"the run was finished before {options.kills - count} of the kills; give it more --steps")
    if not differences:
        print(f"identical, after {count} kills, in {time.monotonic() - begun:.0f} s")
    return differences


if __name__ == "__main__":
    main()
