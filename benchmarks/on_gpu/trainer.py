"""What surrounds the steps on this card: decoding and augmentation of real JPEGs, and the start of a rank.

python -m benchmarks.on_gpu.trainer [NAME]
"""

import json
from typing import Any

from benchmarks.on_gpu.checks import Checks, main
from benchmarks.on_gpu.jobs import run

checks = Checks()


def script(*arguments: str, seconds: float) -> dict[str, Any]:
    """The JSON object that a benchmark ends with."""
    lines = run(*arguments, seconds=seconds).splitlines()
    figures: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return figures


@checks.add
def pipeline() -> tuple[str, dict[str, Any]]:
    figures = script("benchmarks/pipeline.py", "--rounds", "3", seconds=280)
    shown = ("vs_synthetic", "images_per_s", "cores_for_decoding")
    return str({name: {key: each[key] for key in shown} for name, each in figures["models"].items()}), figures


@checks.add
def starts() -> tuple[str, dict[str, Any]]:
    only = ("compiled-hand", "compiled-fork", "resumed-fork")
    figures = script("benchmarks/startup.py", "--rounds", "2", "--only", *only, seconds=300)
    shown = ("vs_parts", "start_s", "sum_of_parts_s")
    return str({name: {key: each[key] for key in shown} for name, each in figures["cases"].items()}), figures


if __name__ == "__main__":
    main(checks)
