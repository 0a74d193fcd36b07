"""Reads .beton files with FFCV's own Loader, in a separate process.

Importing FFCV compiles for 4 seconds, so one process imports it once for all tests.  It reads each file in a fork of
itself, because more than one Loader in a process is not safe.
"""

import os
import select
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.helpers.paths import ROOT

TIMEOUT = 120  # seconds, to import FFCV or to read a file


class StockFfcv:
    """The process that reads files; a context manager."""

    def __init__(self) -> None:
        environment = os.environ | {"NUMBA_THREADING_LAYER": "omp"}
        command = [sys.executable, "-m", "tests.helpers.stock_ffcv"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=-1, stdout=-1, text=True)

    def __enter__(self) -> "StockFfcv":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, beton: Path, crop: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (N, H, W, 3) and labels (N,); with `crop`, center crops scaled to `crop` x `crop` pixels."""
        assert self._process.stdin and self._process.stdout
        out = beton.with_suffix(".npz")
        print(beton, out, crop, sep="\t", file=self._process.stdin, flush=True)
        assert select.select([self._process.stdout], [], [], TIMEOUT)[0], "FFCV does not answer"
        assert self._process.stdout.readline() == "0\n", "FFCV failed"
        with np.load(out) as content:
            return content["images"], content["labels"]


def main() -> None:
    """Reads tab-separated requests from stdin, and prints the exit code of each."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    def read(beton: str, out: str, crop: int) -> None:
        decoder = CenterCropRGBImageDecoder((crop, crop), ratio=1) if crop else SimpleRGBImageDecoder()
        pipelines = {"image": [decoder], "label": [IntDecoder()]}
        order = OrderOption.SEQUENTIAL
        loader = Loader(beton, batch_size=7, num_workers=1, order=order, drop_last=False, pipelines=pipelines)
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
        np.savez(out, images=images, labels=labels[:, 0])

    for line in sys.stdin:
        beton, out, crop = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                read(beton, out, int(crop))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
