"""The progress line, and output to a full disk."""

import subprocess
import sys

from tests.helpers.paths import CHECKOUT
from tests.helpers.records import evaluation_record, training_record
from vit.run.progress import progress_line


def test_the_progress_line_shows_progress_results_and_time_left() -> None:
    """The loss of a training record, the accuracies of an evaluation."""
    line = progress_line(training_record(20, loss=2.34567) | {"seconds_left": 3723.4})
    assert line == "epoch 0.50/5  step 20/100  loss 2.3457  lr 1.00e-03  10,000 images/s  1:02:03 left"
    assert progress_line(training_record(20)).endswith("  1:30 left")
    assert "  0.4 images/s  " in progress_line(training_record(20) | {"images_per_second": 0.42})
    assert progress_line(training_record(20) | {"mfu": 0.3149}).endswith("  10,000 images/s  MFU 31%  1:30 left")
    assert progress_line(training_record(20) | {"seconds_left": 59.7}).endswith("  1:00 left")
    assert progress_line(evaluation_record(20)) == "epoch 0.50/5  step 20/100  test top-1 50.00%  top-5 90.00%"
    assert progress_line(evaluation_record(20) | {"val_top1_average": 0.515}).endswith("  EMA 51.50%")


def test_a_run_continues_when_its_output_cannot_be_written() -> None:
    """The output of a rank is a file in the run folder.  Writing to /dev/full fails as on a full disk."""
    program = (
        "import os; from vit.run.progress import show; "
        "show('a step'); show('another'); os.write(2, b'continued'); os._exit(0)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=CHECKOUT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "continued")
