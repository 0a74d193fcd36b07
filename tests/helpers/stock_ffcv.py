"""Reads and writes .beton files with FFCV's own Loader and DatasetWriter, in a separate process.

Importing FFCV compiles for 4 seconds, so one process imports it once for all tests.  It handles each file in a fork of
itself, because more than one Loader in a process is not safe.
"""

import importlib.util
import os
import pickle
import select
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.helpers.paths import CHECKOUT

TIMEOUT = 120  # seconds, to import FFCV or to read or write a file


class StockFfcv:
    """The process that reads and writes files; a context manager."""

    def __init__(self) -> None:
        import pytest  # not in the process that runs FFCV

        if importlib.util.find_spec("ffcv") is None:
            pytest.skip("FFCV is not installed")
        environment = os.environ | {"NUMBA_THREADING_LAYER": "omp"}
        command = [sys.executable, "-m", "tests.helpers.stock_ffcv"]
        self._process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdin=-1, stdout=-1, text=True)

    def __enter__(self) -> "StockFfcv":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, beton: Path, crop: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images (N, H, W, 3) and labels (N,); with `crop`, center crops scaled to `crop` x `crop` pixels."""
        out = beton.with_suffix(".npz")
        self._request("read", beton, out, crop)
        with np.load(out) as content:
            return content["images"], content["labels"]

    def write(
        self,
        beton: Path,
        images: Sequence[NDArray[np.uint8]],
        labels: Sequence[int],
        fields: Sequence[str] = ("image", "label"),
        **options: Any,
    ) -> Path:
        """Writes images (H, W, 3) with the options of RGBImageField; the fields get these names."""
        samples = beton.with_suffix(".pickle")
        samples.write_bytes(pickle.dumps((list(zip(images, labels, strict=True)), fields, options)))
        self._request("write", beton, samples, 0)
        return beton

    def _request(self, *arguments: object) -> None:
        assert self._process.stdin and self._process.stdout
        print(*arguments, sep="\t", file=self._process.stdin, flush=True)
        assert select.select([self._process.stdout], [], [], TIMEOUT)[0], "FFCV does not answer"
        assert self._process.stdout.readline() == "0\n", "FFCV failed"


def main() -> None:
    """Reads tab-separated requests from stdin, and prints the exit code of each."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.writer import DatasetWriter

    def read(beton: str, out: str, crop: int) -> None:
        decoder = CenterCropRGBImageDecoder((crop, crop), ratio=1) if crop else SimpleRGBImageDecoder()
        pipelines = {"image": [decoder], "label": [IntDecoder()]}
        order = OrderOption.SEQUENTIAL
        loader = Loader(beton, batch_size=7, num_workers=1, order=order, drop_last=False, pipelines=pipelines)
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        images, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
        np.savez(out, images=images, labels=labels[:, 0])

    def write(beton: str, samples: str) -> None:
        content, names, options = pickle.loads(Path(samples).read_bytes())
        kinds = (RGBImageField(**options), IntField())
        with open(os.devnull, "w") as sys.stderr:  # hides the progress bar
            DatasetWriter(beton, dict(zip(names, kinds, strict=True)), num_workers=1).from_indexed_dataset(content)

    for line in sys.stdin:
        what, beton, other, crop = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                read(beton, other, int(crop)) if what == "read" else write(beton, other)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
