"""Starts the fork server, prints what it has open as one line of JSON, and lets a fork of it use the GPU.

python -m benchmarks.on_gpu.fork_probe LOG
"""

import json
import os
import sys
import time
from pathlib import Path

from jobs.node import forkserver, forkserver_process


def main(log: Path) -> None:
    forkserver.ensure_running()
    while not forkserver_process.is_ready():
        time.sleep(0.05)
    server = Path(f"/proc/{forkserver_process.pid()}")
    files = [os.readlink(file) for file in (server / "fd").iterdir()]
    child = forkserver.start("benchmarks.on_gpu.fork_child", [], {"CUDA_VISIBLE_DEVICES": "0"}, log)
    report = {
        "threads": len(list((server / "task").iterdir())),
        "GPU files": [file for file in files if "nvidia" in file],
        "exit code of the fork": child.wait(),
        "the fork": log.read_text().strip(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
