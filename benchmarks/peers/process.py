"""Trains with one of the loops that step.py compares, in a process of its own.

python -m benchmarks.peers.process LOOP MODEL DEPTH BATCH PRECISION DEVICE

Prints one JSON object when the first steps are done, and one for each round that a line on its stdin asks for.
"""

import logging
import os
import sys
import warnings

import torch

from benchmarks.peers.loops import LOOPS
from benchmarks.peers.rounds import Batches, Setup


def main() -> None:
    name, model, depth, batch, precision, device = sys.argv[1:]
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    setup = Setup(model, int(depth), int(batch), precision, torch.device(device))
    if setup.device.type == "cpu":
        torch.set_num_threads(1)
    else:
        torch.set_float32_matmul_precision("high")
    LOOPS[name](setup, Batches(setup))
    sys.stdout.flush()
    os._exit(0)  # no clean-up of threads that some of them leave


if __name__ == "__main__":
    main()
