"""The streams of a GPU wait for each other where one uses what another computes.

torch's CUDA sanitizer follows which stream reads and writes each tensor.  It raises an error for two accesses, one of
them a write, that no event orders.  It does not need the kernels to run.
"""

from dataclasses import replace

import pytest
import torch
import torch.cuda._sanitizer as sanitizer

from tests.helpers.gpu_runs import SMALL
from tests.helpers.gpu_steps import undecoded_batches
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import CONFIGS
from vit.checkpoint.snapshot import Snapshot, make_layout
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.distributed.world import join_process_group
from vit.training.step import StepRunner, augmented_batches

STEPS = 3
RECIPES = ("vit_b16_noaug", "vit_b16_deit", "vit_b16_deit3_192", "vit_b16_torchvision")
UPDATE_BEFORE_COPY = "the update does not wait for the copy of the snapshot"
COPY_BEFORE_UPDATE = "the copy of the snapshot does not wait for the update"
SUM_BEFORE_BACKWARD = "the sum over ranks does not wait for the backward pass"
FORWARD_BEFORE_AUGMENTATION = "the forward pass does not wait for the augmented batch"
# Each with one of the operations that nothing orders.
FAULTS = {
    UPDATE_BEFORE_COPY: "aten::_foreach_copy_",
    COPY_BEFORE_UPDATE: "aten::_foreach_copy_",
    SUM_BEFORE_BACKWARD: "aten::copy_",  # of DDP, to its bucket
    FORWARD_BEFORE_AUGMENTATION: "aten::div_",  # the last operation of the normalization
}


class CarelessStream(torch.cuda.Stream):
    """A stream that does not wait for others."""

    def wait_stream(self, stream: torch.cuda.Stream) -> None:
        """Returns at once."""


def take_steps(recipe: str, fault: str | None) -> set[tuple[str, str]]:
    """Runs steps with a snapshot of each; returns the pairs of unordered operations, the later one first."""
    sanitizer.enable_cuda_sanitizer()
    options = ["--global_batch", "16", "--model.depth", "1", "--compile", "false"]
    cfg = load_config(CONFIGS / f"{recipe}.yaml", *SMALL, *options)
    with join_process_group(cfg) as world:
        state = TrainState.fresh(cfg, world.device)
        runner = StepRunner(RunSchedule(cfg, 1000), world, state)
        snapshot = Snapshot(make_layout(state.tensors(), world.size), world.rank, world.device)
        if fault == COPY_BEFORE_UPDATE:
            snapshot._stream = CarelessStream(world.device)
        if fault == SUM_BEFORE_BACKWARD:
            assert runner.gradients._tree_sum is not None
            runner.gradients._tree_sum._stream = CarelessStream(world.device)
        before = torch.cuda.current_stream().record_event()
        batches = augmented_batches(runner.schedule, world, undecoded_batches(cfg, world), 0)
        # The sanitizer does not see that the allocator waits for other streams before it uses memory again, nor does it
        # know that a micro-batch in the middle of a tensor is freed with the tensor.
        kept = []
        try:
            for step in range(STEPS):
                batch = next(batches)
                kept.append(batch)
                if fault == FORWARD_BEFORE_AUGMENTATION:
                    batch = replace(batch, ready=before)
                snapshot.start_copy(state.tensors())
                runner.forward_backward(step, batch)
                if fault != UPDATE_BEFORE_COPY:
                    snapshot.wait_for_copy()
                runner.update(step)
            runner.check_finite(weights=True)
        except sanitizer.CUDASanitizerErrors as found:
            pairs = [(error.current_access.operator, error.previous_access.operator) for error in found.errors]
            return {(str(later).partition("(")[0], str(earlier).partition("(")[0]) for later, earlier in pairs}
    return set()


@pytest.mark.parametrize(("recipe", "gpus"), [(recipe, 1 + i % 2) for i, recipe in enumerate(RECIPES)])
def test_no_stream_uses_what_another_has_not_finished(recipe: str, gpus: int, null_gpu: NullGpu) -> None:
    """Augmentation one step ahead, sums of gradients, and the copy for a checkpoint run beside the training step."""
    assert null_gpu.run(take_steps, recipe, None, ranks=gpus) == gpus * [set()]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_missing_wait_between_streams_is_found(fault: str, null_gpu: NullGpu) -> None:
    """Each of the four waits, left out.  A single rank sums its gradients on the stream of the backward pass."""
    ranks = 2 if fault == SUM_BEFORE_BACKWARD else 1
    for pairs in null_gpu.run(take_steps, "vit_b16_noaug", fault, ranks=ranks):
        assert any(FAULTS[fault] in (name.partition(".")[0] for name in pair) for pair in pairs), pairs
