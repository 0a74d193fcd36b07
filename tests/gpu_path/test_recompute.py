"""Recomputing a micro-batch on GPUs: with DDP and without, with CUDA graphs, compiled, in fp16."""

from pathlib import Path

import pytest

from tests.helpers.gpu_runs import ANSWERS, run_options, train_and_count
from tests.helpers.null_gpu_ranks import NullGpu
from vit.run.folder import RunFolder

SELDOM = ("--log.eval_every_epochs", "1000", "--checkpoint.every_minutes", "1000", "--log.every_steps", "1000")
EVERY = 7
FIRST, LAST = 14, 17  # steps after the second one that recomputes


def recomputed(run: Path) -> list[int]:
    """The steps that recomputed a micro-batch; asserts that all found the same values."""
    events = RunFolder(run).events()
    assert not [event for event in events if event["event"] in ("wrong arithmetic", "not recomputed")]
    return [event["step"] for event in events if event["event"] == "recomputed"]


@pytest.mark.parametrize(
    ("recipe", "compiled", "gpus", "more"),
    [
        ("vit_b16", False, 2, ()),
        ("vit_b16_deit", False, 1, ("--precision", "fp16")),
        ("vit_b16_deit", False, 2, ("--cuda_graphs", "true")),
        ("vit_b16_deit", False, 1, ("--cuda_graphs", "true")),
        pytest.param("vit_b16", True, 2, (), marks=pytest.mark.campaign),
        pytest.param("vit_b16", True, 1, ("--cuda_graphs", "true"), marks=pytest.mark.campaign),
    ],
)
def test_the_host_waits_only_in_steps_that_recompute(
    recipe: str, compiled: bool, gpus: int, more: tuple[str, ...], null_gpu: NullGpu, jpegs: Path, tmp_path: Path
) -> None:
    """The steps between them do not wait for the GPU, and launch as much as without this check."""
    options = run_options(recipe, compiled, jpegs, tmp_path, "--epochs", "9", *SELDOM, *more)
    counts = []
    for every in (EVERY, 0):
        setting = ("--checks.recompute_every_steps", str(every), "--run-dir", str(tmp_path / str(every)))
        run = null_gpu.run(
            train_and_count, [*options, *setting], FIRST, LAST, ranks=gpus, answers=ANSWERS, timeout=200
        )  # fmt: skip
        counts.append(run[0])
    with_check, without = counts
    assert not [wait for wait in with_check.synchronizations if not wait.thread.startswith("decode")]
    assert with_check.launches == without.launches
    assert recomputed(tmp_path / str(EVERY)) == [7, 14]
    assert recomputed(tmp_path / "0") == []
