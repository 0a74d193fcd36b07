"""What --dry-run prints: the config, the sizes, and the job script of each."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from jobs.login import sbatch
from jobs.login.resources import Resources
from jobs.login.sizes import Size, describe
from jobs.login.sweep_arrays import parts
from vit.config import schema
from vit.config.schema import Config
from vit.run.counts import counted
from vit.run.folder import RunFolder


def print_run(run: RunFolder, cfg: Config, sizes: Sequence[tuple[Size, Resources]], backend: str) -> None:
    """One run."""
    print(f"# {run.config}\n{schema.to_yaml(cfg)}")
    _print_jobs(run.jobs, [run], cfg, sizes, backend)


def print_sweep(
    runs: Sequence[RunFolder], array_size: int, cfg: Config, sizes: Sequence[tuple[Size, Resources]], backend: str
) -> None:
    """All runs of a sweep, the config of the first, and the first of its job arrays, which have up to so many runs."""
    parent = runs[0].path.parent
    print(f"# {parent}\n" + "\n".join(f"#   {run.path.name}" for run in runs))
    print(f"# config of the first of {counted(len(runs), 'run')}\n{schema.to_yaml(cfg)}")
    arrays = parts(runs, array_size)
    if len(arrays) > 1:
        print(f"# {len(arrays)} job arrays of up to {counted(array_size, 'run')} (MaxArraySize); this is the first one")
    _print_jobs(parent / runs[0].jobs.name, arrays[0], cfg, sizes, backend)


def _print_jobs(
    folder: Path, runs: Sequence[RunFolder], cfg: Config, sizes: Sequence[tuple[Size, Resources]], backend: str
) -> None:
    """The sizes if there are several; the script of the first one, and the lines in which the others differ."""
    several = len(sizes) > 1
    scripts = [sbatch.script(folder, resources, runs, backend, hold=several) for _, resources in sizes]
    if several:
        what = "job arrays" if len(runs) > 1 else "jobs"
        print(
            f"# {len(sizes)} {what}, one for each size; the run uses whatever starts first, and moves to a larger one"
        )
        for size, resources in sizes:
            print(f"#   {describe(size, [each for each, _ in sizes], cfg, resources.use_gpus)}")
        print()
    print(f"# job script{f' for {sizes[0][0]}' if several else ''}")
    print(scripts[0])
    for (size, _), script in zip(sizes[1:], scripts[1:], strict=True):
        lines = difflib.unified_diff(scripts[0].splitlines(), script.splitlines(), n=0, lineterm="")
        print(f"# job script for {size}: without the lines marked by -, and with those marked by +")
        print("\n".join(line for line in lines if not line.startswith(("+++", "---", "@@"))))
