"""The machine that figures depend on, and the file that keeps them for each kind of machine."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from vit.run.processor import processor

RESULTS = Path(__file__).resolve().parents[1] / "results"


def gpu_name() -> str | None:
    """The name of the first GPU that is visible, found without torch, which would start slowly."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


def machine() -> dict[str, Any]:
    """The hardware, the versions, and the load of the last 1, 5 and 15 minutes."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu_name(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load": [round(each, 1) for each in os.getloadavg()],
    }


def save_figures(name: str, figures: dict[str, Any]) -> None:
    """Puts the figures of a full run into results/NAME.json, in place of those of the same GPU, or of no GPU."""
    file = RESULTS / f"{name}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {figures["machine"]["gpu"] or "cpu": figures}, indent=1) + "\n")
