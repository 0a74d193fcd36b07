"""Trains a run twice, once undisturbed and once killed at random times on varying numbers of ranks, and compares bits.

python -m vit.verify --config configs/demo.yaml --kills 20 --ranks 4,2,1
"""

if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()

import hashlib
import itertools
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
from vit.checkpoint.initial_settings import InitialSettings
from vit.checkpoint.load import load_checkpoint
from vit.config.parser import config_parser, parse_config
from vit.config.paths import user_path
from vit.config.schema import Config, to_yaml
from vit.config.user_error import UserError
from vit.data.dataset_manifest import read_dataset_manifest
from vit.kill_attempts import Attempt, UnexpectedExitError, train_and_kill
from vit.run.command import run_command
from vit.run.console import started_as
from vit.run.counts import counted
from vit.run.disk_errors import explained
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.run.metrics import TIMING_KEYS

WARM_UP_STEPS = 5  # steps at the start of a run that initialize everything, and are left out when steps are timed
GROUPS = {"model": "weights", "optimizer": "moments", "average": "EMA of weights"}


@dataclass(frozen=True)
class Artifact:
    """A result of a run that is compared: named values, in order."""

    name: str
    size: str  # for the table
    values: dict[str, Any]

    @property
    def digest(self) -> str:
        """The first eight hex digits of the SHA-256 digest of all names and bits."""
        out = hashlib.sha256()
        for name, value in self.values.items():
            out.update(repr((name, (value.dtype, value.shape) if isinstance(value, Tensor) else value)).encode())
            if isinstance(value, Tensor):
                out.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return out.hexdigest()[:8]


def shorten(cfg: Config, steps: int) -> Config:
    """The same training on a subset of the images, such that `steps` steps are two passes, with all logs enabled.

    A pass uses each image `data.repeats` times, and so it is as many epochs.  With `train_sizes`, each
    size has its share of the steps.
    """
    samples, repeats = read_dataset_manifest(cfg.data.train).samples, cfg.data.repeats
    views = steps * cfg.global_batch - cfg.global_batch // 3  # passes end in the middle of a batch
    limit = min(samples, max(1, views // (2 * repeats)))
    epochs = 2 * repeats if limit < samples else math.ceil(views / limit)
    return replace(
        cfg,
        epochs=epochs,
        epochs_count="images",
        data=replace(cfg.data, limit=limit),
        # An EMA does not affect the other results, and is compared as well.
        optim=replace(
            cfg.optim, warmup_epochs=min(cfg.optim.warmup_epochs, epochs / 4), ema_decay=cfg.optim.ema_decay or 0.99
        ),
        log=replace(cfg.log, every_steps=1, samples=True, wandb="off"),
    )


def artifacts(run: RunFolder) -> list[Artifact]:
    """The results of a finished run."""
    tensors, manifest = load_checkpoint(find_checkpoints(run.checkpoints)[0])
    out = []
    for prefix, title in GROUPS.items():
        named = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
        out.append(
            Artifact(title, f"{sum(t.numel() for t in named.values()):,} in {counted(len(named), 'tensor')}", named)
        )
    out.append(Artifact("gradient scaler", f"of step {manifest['step']}", {"scaler": manifest["about"]["scaler"]}))
    curve = [{k: v for k, v in record.items() if k not in TIMING_KEYS} for record in read_lines(run.metrics)]
    by_name = index(curve, lambda r: f"step {r['step']}{'' if 'loss' in r else ', evaluation'}")
    out.append(Artifact("learning curve", f"{counted(len(curve), 'record')}", by_name))
    used = sorted(read_lines(run.samples), key=lambda r: (r["step"], r["shard"]))
    by_name = index(used, lambda r: f"step {r['step']}, micro-batch {r['shard']}")
    out.append(
        Artifact("sample ids", f"{sum(len(r['samples']) for r in used):,} of {len(used):,} micro-batches", by_name)
    )
    return out


def index(records: list[dict[str, Any]], name: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """Maps names to records; a duplicate gets a name of its own."""
    out: dict[str, Any] = {}
    for record in records:
        key = name(record)
        out[f"{key}, again" if key in out else key] = record
    return out


def passes_are_complete(run: RunFolder, samples: int, repeats: int = 1) -> bool:
    """Whether each completed pass over `samples` images used each of them exactly `repeats` times, in a row."""
    stream: list[int] = []
    used = sorted(read_lines(run.samples), key=lambda r: (r["step"], r["shard"]))
    for _, records in itertools.groupby(used, key=lambda r: r["step"]):
        rows = [record["samples"] for record in records]
        # With repeats, neighbors in the stream are at the same place of different micro-batches.
        stream += [i for row in (zip(*rows, strict=True) if repeats > 1 else rows) for i in row]
    views = samples * repeats
    passes = [stream[start : start + views] for start in range(0, len(stream) - views + 1, views)]
    return bool(passes) and all(
        sorted(each[::repeats]) == list(range(samples))
        and all(each[repeat::repeats] == each[::repeats] for repeat in range(1, repeats))
        for each in passes
    )


def first_difference(undisturbed: Artifact, killed: Artifact) -> str | None:
    """Describes the first difference between two runs; None if there is none."""
    for name in [*undisturbed.values, *(n for n in killed.values if n not in undisturbed.values)]:
        if name not in undisturbed.values or name not in killed.values:
            return f"{name} is only in the {'killed' if name in killed.values else 'undisturbed'} run"
        a, b = undisturbed.values[name], killed.values[name]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return f"{name} is {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
            differs = _bits(a) != _bits(b)
            if differs.any():
                first = int(differs.reshape(-1).int().argmax())
                return (
                    f"{name}: {int(differs.sum()):,} of {a.numel():,} values differ; "
                    f"the first, at {first:,}, is {a.reshape(-1)[first].item()!r} and {b.reshape(-1)[first].item()!r}"
                )
        elif a != b and isinstance(a, dict):
            key = next(k for k in [*a, *b] if k not in a or k not in b or a[k] != b[k])
            return f"{name}: {key} is {a.get(key, 'absent')} and {b.get(key, 'absent')}"
    return None if list(undisturbed.values) == list(killed.values) else "the same records in a different order"


def _bits(tensor: Tensor) -> Tensor:
    """The bit patterns as integers, (…) -> (…): they distinguish -0 from 0, and equal NaNs compare as equal."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def compare(undisturbed: RunFolder, killed: RunFolder, samples: int, repeats: int) -> list[str]:
    """Prints a table of all results and returns the differences."""
    print(f"{'':<18}{'':<32}{'undisturbed':<12}{'killed':<12}")
    differences = []
    for a, b in zip(artifacts(undisturbed), artifacts(killed), strict=True):
        difference = first_difference(a, b)
        print(f"{a.name:<18}{a.size:<32}{a.digest:<12}{b.digest:<12}{'differ' if difference else 'same'}")
        differences += [f"{a.name}: {difference}"] if difference else []
    complete = [passes_are_complete(run, samples, repeats) for run in (undisturbed, killed)]
    answers = ["yes" if c else "no" for c in complete]
    count = "once" if repeats == 1 else f"{repeats} times"
    print(f"{'complete passes':<18}{f'each of {samples:,} samples {count}':<32}{answers[0]:<12}{answers[1]:<12}")
    return differences if all(complete) else [*differences, f"sample ids: a pass does not have each sample {count}"]


def slowdown(bits: RunFolder, samples: RunFolder) -> float:
    """Extra time per step of `exact: bits` compared with `exact: samples`: ratio of median throughputs, minus 1.

    Both runs need more than WARM_UP_STEPS steps.
    """
    throughput = [
        statistics.median([r["images_per_second"] for r in read_lines(run.metrics) if "loss" in r][WARM_UP_STEPS:])
        for run in (bits, samples)
    ]
    return throughput[1] / throughput[0] - 1


def main(args: list[str] | None = None) -> None:
    """The command line.  Exit codes: 0 if identical, 1 if not or if training failed, 2 for invalid input."""
    parser = config_parser(started_as("vit.verify"), (__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--ranks", default="4,2,1", help="numbers of ranks of the attempts, in turn (default: 4,2,1)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps, for two passes (default: 60)")
    parser.add_argument("--kill-seed", type=int, default=0, help="seed of the times and victims of kills (default: 0)")
    parser.add_argument("--fresh", action="store_true", help="start the ranks with torchrun, not as forks")
    parser.add_argument("--cost", action="store_true", help="measure what exact bits cost; done anyway on GPUs")
    parser.add_argument("--folder", type=user_path, help="folder to keep both runs in (default: a temporary folder)")
    settings = InitialSettings()
    cfg, options = parse_config(parser, args, settings)
    print("".join(f"{line}\n" for line in settings.lines), end="")
    try:
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.ranks):
            raise UserError(f"--ranks {options.ranks!r} must be numbers separated by commas, e.g. 4,2,1")
        ranks = [int(n) for n in options.ranks.split(",")]
        fewest = WARM_UP_STEPS + 1 if options.cost else 1
        if options.steps < fewest:
            raise UserError(f"--steps {options.steps} is too few; use at least {fewest}{' with --cost' * options.cost}")
        if options.kills < 0:
            raise UserError(f"--kills {options.kills} must not be negative")
        cfg = shorten(cfg, options.steps)
        for n in ranks:
            cfg.check_ranks(n)
        cfg.check_mixing()
        if options.folder and options.folder.exists() and any(options.folder.iterdir()):
            raise UserError(f"--folder {options.folder} is not empty; name a new one")
    except (UserError, OSError) as error:
        parser.fail(explained(error))
    folder = Path(tempfile.mkdtemp(prefix="vit-verify-")) if options.folder is None else options.folder
    try:
        differences = verify(cfg, folder.absolute(), ranks, options)
    except UnexpectedExitError as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the ranks end as well
    for difference in differences:
        print(f"  {difference}")
    if differences:
        sys.exit(f"NOT identical; both runs are in {folder}")
    if options.folder is None:
        shutil.rmtree(folder)


def verify(cfg: Config, folder: Path, ranks: list[int], options: Namespace) -> list[str]:
    """Trains both runs and compares them; returns the differences."""
    started = time.monotonic()
    undisturbed, killed = RunFolder(folder / "straight"), RunFolder(folder / "killed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(cfg))
    arguments = ["--config", str(folder / "config.yaml"), "--checkpoint.every_minutes"]
    rarely, often = [*arguments, "1e6"], [*arguments, "1e-6"]
    samples = min(cfg.data.limit, read_dataset_manifest(cfg.data.train).samples)
    steps = cfg.steps(cfg.epochs, samples)
    print(
        f"{counted(steps, 'step')} of {counted(cfg.global_batch, 'image')}, exact: {cfg.exact}, "
        f"on {counted(ranks[0], 'rank')}, undisturbed …",
        flush=True,
    )
    Attempt(undisturbed, rarely, ranks[0], options.fresh).finish()
    print(f"the same run, killed {counted(options.kills, 'time')}, on {options.ranks} ranks in turn …", flush=True)
    print(f"{'kill':>4}{'after':>9}{'at step':>9}{'ranks':>7}{'steps lost':>12}  killed", flush=True)
    kills = train_and_kill(killed, often, steps, ranks, options.kills, options.kill_seed, options.fresh)
    count = 0
    for count, kill in enumerate(kills, 1):
        row = f"{count:>4}{kill.seconds:>7.2f} s{kill.step:>9}{kill.ranks:>7}{kill.lost:>12}  {kill.victim}"
        print(row, flush=True)
    print()
    differences = compare(undisturbed, killed, samples, cfg.data.repeats)
    on_gpus = (undisturbed.last("started") or {}).get("device") == "cuda"
    if options.cost or (on_gpus and steps > WARM_UP_STEPS):
        other = RunFolder(folder / "samples")
        Attempt(other, [*rarely, "--exact", "samples"], ranks[0], options.fresh).finish()
        percent = 100 * slowdown(undisturbed, other)
        longer = f"a step takes {percent:+.1f} % longer with exact: bits than with exact: samples"
        print(f"{longer}, on {counted(ranks[0], 'rank')}")
    if count < options.kills:
        print(f"the run finished before {options.kills - count} of the kills; use more --steps")
    if not differences:
        print(f"identical after {counted(count, 'kill')}, in {time.monotonic() - started:.0f} s")
    return differences


if __name__ == "__main__":
    run_command(main)
