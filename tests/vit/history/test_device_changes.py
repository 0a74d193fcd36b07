"""From which steps on a run computed on another kind of GPU."""

from typing import Any

import pytest

from vit.history.device_changes import DeviceChange, device_changes
from vit.history.notes import notes
from vit.history.run_history import RunHistory

A100, V100 = "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-32GB"


def started(step: Any, device: Any) -> dict[str, Any]:
    """An attempt of the ledger."""
    return {"event": "started", "time": 1.0, "step": step, "device_name": device}


@pytest.mark.parametrize(
    ("events", "changes"),
    [
        ([started(0, A100), started(100, A100)], []),
        ([started(0, A100), started(0, V100), started(50, V100)], []),  # no step was done on the first one
        ([started(0, A100), started(100, V100)], [DeviceChange(100, A100, V100)]),
        (
            [started(0, A100), started(100, V100), started(300, A100)],
            [DeviceChange(100, A100, V100), DeviceChange(300, V100, A100)],
        ),
        ([started(0, A100), started(100, V100), started(100, A100)], []),  # the V100 did not save a step
        ([started(0, A100), started(100, V100), started(60, A100)], []),  # a damaged checkpoint: all repeated
        ([started(0, A100), started(None, V100), {"event": "started"}, started(9, 5)], []),  # damaged
    ],
)
def test_a_change_counts_if_steps_of_both_kinds_are_left(events: list[Any], changes: list[DeviceChange]) -> None:
    """Steps of an attempt that were repeated elsewhere do not."""
    assert device_changes(events) == changes


def test_a_note_names_the_step_and_both_kinds() -> None:
    """Not for a run whose bits are not meant to be the same."""
    events = [started(0, A100), started(1200, V100)]
    expected = (
        f"the steps from 1,201 on are those of {V100}, before of {A100}: "
        "the same bits are only computed by one kind of GPU (--gpus TYPE:N)"
    )
    assert notes(RunHistory(events=events)) == [expected]
    assert notes(RunHistory(events=events, settings={"exact": "samples"})) == []
