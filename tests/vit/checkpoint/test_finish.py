"""A run is finished only when the checkpoint of its last step has been read back intact."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.savers import events, saved_steps, saver_on_rank
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.saver import READ_BACK_ATTEMPTS, Saver

# More than READ_BACK_ATTEMPTS: an attempt that finds the damage early saves twice.
ALWAYS = 100


class DamagingSaver(Saver):
    """Damages, hides or removes the newest checkpoint after it was committed, before it is read back."""

    faults = 0
    how = "damage"
    early = False  # whether the result of reading back is there as soon as that of the commit

    def _poll(self, wait: bool = False) -> None:
        super()._poll(wait)
        if self.early:
            self.wait_until_pruned()

    def _prune(self, *args: Any, **options: Any) -> None:
        if self.faults:
            self.faults -= 1
            part = find_checkpoints(self.run.checkpoints)[0] / "part-001.bin"
            if self.how == "remove":
                shutil.rmtree(part.parent)
            elif self.how == "hide":
                part.rename(part.with_suffix(".aside"))
                part.symlink_to(part.name)  # cannot be opened: ELOOP
            else:
                content = bytearray(part.read_bytes())
                content[100] ^= 4
                part.write_bytes(content)
        elif self.how == "hide" and (aside := list(self.run.checkpoints.glob("*/part-001.aside"))):
            aside[0].rename(aside[0].with_suffix(".bin"))
        super()._prune(*args, **options)


def finish(run: Path, faults: int, how: str = "damage", early: bool = False) -> tuple[str | None, int | None]:
    """Saves steps 1 and 2 as the last ones of a run; returns the error message and the newest saved step."""
    with saver_on_rank(run) as (state, saver):
        saver.__class__ = DamagingSaver
        state.train(1)
        assert saver.save_before_exit() is None
        saver.wait_until_pruned()
        saver.faults, saver.how, saver.early = faults if saver.world.rank == 0 else 0, how, early
        state.train(2)
        saver.save()
        error = saver.save_before_finish()
        return error, saver.saved_step


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("faults", [0, 1, READ_BACK_ATTEMPTS - 1])
def test_a_damaged_last_checkpoint_is_saved_again(tmp_path: Path, faults: int, early: bool) -> None:
    """All ranks agree; the damaged ones are quarantined and recorded."""
    assert run_ranks(4, finish, tmp_path, faults, "damage", early) == [(None, 2)] * 4
    assert saved_steps(tmp_path) == [2, 1]
    assert [event["step"] for event in events(tmp_path, "damaged checkpoint")] == [2] * faults


@pytest.mark.parametrize("early", [False, True])
def test_a_last_checkpoint_that_stays_damaged_is_an_error(tmp_path: Path, early: bool) -> None:
    """On all ranks; the checkpoint before it remains."""
    results = run_ranks(4, finish, tmp_path, ALWAYS, "damage", early)
    assert len({error for error, _ in results}) == 1
    error, _ = results[0]
    assert error is not None
    assert "step 2 could not be read back" in error
    assert "checksum" in error
    assert saved_steps(tmp_path) == [1]


def test_a_last_checkpoint_that_cannot_be_read_at_first_is_read_again(tmp_path: Path) -> None:
    """It is neither quarantined nor saved again."""
    assert run_ranks(4, finish, tmp_path, 1, "hide") == [(None, 2)] * 4
    assert saved_steps(tmp_path) == [2, 1]
    assert [event["step"] for event in events(tmp_path, "checkpoint")] == [1, 2]
    assert events(tmp_path, "damaged checkpoint") == []


def test_a_last_checkpoint_that_is_gone_is_saved_again(tmp_path: Path) -> None:
    """As long as it does not disappear again and again; then the message names it."""
    assert run_ranks(4, finish, tmp_path / "once", 1, "remove") == [(None, 2)] * 4
    assert saved_steps(tmp_path / "once") == [2, 1]
    error, _ = run_ranks(1, finish, tmp_path / "always", ALWAYS, "remove")[0]
    assert error == (
        f"step 2 could not be read back after it was saved: {tmp_path}/always/checkpoints/step-00000002 is missing"
    )
