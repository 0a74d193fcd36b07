"""The host never waits for the GPU between two steps, so that the GPU always has work queued."""

from collections import Counter
from pathlib import Path
from unittest import mock

import pytest

from tests.helpers.gpu_runs import ANSWERS, DISTINCT_RECIPES, run_options, train_and_count
from tests.helpers.null_gpu_counts import Counts, Synchronization
from tests.helpers.null_gpu_ranks import NullGpu
from vit.training.rank_times import RankTimes

# No evaluation, checkpoint or log line in the steps that are counted: these do wait.
SELDOM = ("--log.eval_every_epochs", "1000", "--checkpoint.every_minutes", "1000", "--log.every_steps", "1000")
FIRST, LAST = 12, 16
CASES = [
    *((recipe, False, 1 + i % 2, "bf16") for i, recipe in enumerate(DISTINCT_RECIPES)),
    pytest.param("vit_b16", True, 1, "bf16", marks=pytest.mark.campaign),  # test_counts.py counts a compiled model's
    ("vit_b16", False, 1, "fp16"),
    ("vit_b16_deit3_192", False, 1, "fp16"),
]


def waits(counts: Counts) -> Counter[Synchronization]:
    """All but those of the decoding threads, which wait until a batch is copied before they overwrite it."""
    return Counter({w: times for w, times in counts.synchronizations.items() if not w.thread.startswith("decode")})


@pytest.mark.parametrize(("recipe", "compiled", "gpus", "precision"), CASES)
def test_the_host_does_not_wait_for_the_gpu_in_a_step(
    recipe: str, compiled: bool, gpus: int, precision: str, null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """Each place where it does is listed with its file and line."""
    options = run_options(recipe, compiled, jpegs, tmp_path, "--epochs", "9", "--precision", precision, *SELDOM)
    for counts in null_gpu.run(train_and_count, options, FIRST, LAST, ranks=gpus, answers=ANSWERS, timeout=200):
        assert counts.launches > 0
        assert not waits(counts)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_muon_does_not_wait_for_the_gpu(precision: str, null_gpu: NullGpu, jpegs: Path, tmp_path: Path) -> None:
    """Neither in the Newton-Schulz iterations, nor to decide whether an update in fp16 overflows."""
    options = run_options("vit_b16", False, jpegs, tmp_path, "--epochs", "9", "--precision", precision, *SELDOM)
    options += ["--optim.optimizer", "muon"]
    (counts,) = null_gpu.run(train_and_count, options, FIRST, LAST, answers=ANSWERS, timeout=200)
    assert counts.launches > 0
    assert not waits(counts)


def test_the_host_does_not_wait_in_any_of_a_hundred_steps(null_gpu: NullGpu, jpegs: Path, tmp_path: Path) -> None:
    """DDP would, in each hundredth step, to measure times that nobody reads."""
    options = run_options("vit_b16_noaug", False, jpegs, tmp_path, "--epochs", "60", *SELDOM)
    (counts,) = null_gpu.run(train_and_count, options, FIRST, FIRST + 100, answers=ANSWERS)
    assert not waits(counts)


def train_and_collect(options: list[str]) -> tuple[Counter[Synchronization], Counter[str]]:
    """Waits in the steps from FIRST to LAST of a run, and how often this rank measured something of a step."""
    laps: Counter[str] = Counter()
    add = RankTimes._add

    def count(times: RankTimes, what: str, seconds: float) -> None:
        laps[what] += 1
        add(times, what, seconds)

    with mock.patch.object(RankTimes, "_add", count):
        return waits(train_and_count(options, FIRST, LAST)), laps


def test_sharing_the_times_of_the_ranks_adds_no_wait(null_gpu: NullGpu, jpegs: Path, tmp_path: Path) -> None:
    """They are read from events that have passed, and travel with the losses, which are waited for anyway."""
    found = []
    for seconds in ("0", "60"):
        often = ("--epochs", "9", *SELDOM, "--log.every_steps", "1", "--checks.slow_rank_seconds", seconds)
        (tmp_path / seconds).mkdir()
        options = run_options("vit_b16", False, jpegs, tmp_path / seconds, *often)
        ranks = null_gpu.run(train_and_collect, options, ranks=2, answers=ANSWERS, timeout=200)
        found.append([sum(waits.values()) for waits, _ in ranks])
        for _, laps in ranks:
            measured = [laps[what] for what in ("data", "forward_backward", "wait", "update")]
            assert measured == [0 if seconds == "0" else 18] * 4
    assert found[0] == found[1]
    assert min(found[0]) > 0


def test_comparing_the_ranks_states_does_not_wait(null_gpu: NullGpu, jpegs: Path, tmp_path: Path) -> None:
    """The checksums are computed on the GPU, and read when the losses are read."""
    launches = []
    for every in ("0", "2"):
        more = ("--epochs", "9", *SELDOM, "--checks.checksum_every_steps", every)
        options = run_options("vit_b16_torchvision", False, jpegs, tmp_path / every, *more)
        for counts in null_gpu.run(train_and_count, options, FIRST, LAST, ranks=2, answers=ANSWERS, timeout=200):
            assert not waits(counts)
            launches.append(counts.launches)
    more_launches = [launches[2 + rank] - launches[rank] for rank in range(2)]  # with comparisons
    assert min(more_launches) > 0, "nothing was compared"
    assert max(more_launches) < 100
