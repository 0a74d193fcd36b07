"""What a start does not do: collecting garbage during imports, and reading the files that name compiled graphs."""

import os
import statistics
import subprocess
import sys

IMPORTS = """
import gc, time
gc.{switch}()
import vit.train, torch._inductor.compile_fx
print(time.process_time())
"""
DIGESTS = """
import time
from torch._inductor import codecache
start = time.process_time()
codecache.torch_key(), codecache.triton_key()
print(time.process_time() - start)
"""


def avoided(rounds: int, root: str) -> dict[str, float]:
    """Processor seconds, medians: of all imports with and without the garbage collector, and of the digests."""
    programs = {
        "imports, collecting": IMPORTS.format(switch="enable"),
        "imports": IMPORTS.format(switch="disable"),
        "digests": DIGESTS,
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            command, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": root}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    return {name: round(statistics.median(each), 3) for name, each in seconds.items()}
