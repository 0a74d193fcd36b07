"""`vit.train --find-micro-batch` on a GPU whose memory is too small for some micro-batches."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.null_gpu import environment
from tests.helpers.paths import CHECKOUT, CONFIGS


def test_a_micro_batch_that_does_not_fit_spoils_none_of_the_next(null_gpu_folder: Path) -> None:
    """torch's own error, with all memory free again for the next; the estimate of the memory admits the first one."""
    variables = environment(null_gpu_folder) | {"NULL_GPU_MEMORY_GIB": "1.64", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    options = ["--config", str(CONFIGS / "vit_ti16_deit.yaml"), "--compile", "false", "--device", "cuda"]
    options += ["--global_batch", "256", "--find-micro-batch", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "vit.train", *options], cwd=CHECKOUT, env=os.environ | variables, capture_output=True,
        text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^ +(\d+) +(does not fit|\d\.\d)", done.stdout, re.MULTILINE)
    assert found[0] == ("64", "does not fit")
    assert dict(found).keys() >= {"32", "16"}
    assert dict(found)["32"] != "does not fit"
