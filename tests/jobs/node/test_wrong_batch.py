"""A supervised run in which a rank trains on a wrong image goes on by itself, and ends with the right bits."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import flipped_bits
from tests.helpers.flipped_bits import faulty_source, supervise_with_faults
from tests.helpers.interrupted_runs import (
    assert_same_run,
    new_run_folder,
    run_attempt,
    save_each_step,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.config.sections import ChecksConfig
from vit.history.wrong_arithmetic import EVENT
from vit.run.folder import RunFolder
from vit.train import Outcome

RANK, STEP = 2, 3
LINE = "        losses = []\n"  # in StepRunner.forward_backward
PATCH = f"""
        import os
        from pathlib import Path
        done = Path(os.environ["FAULT_FILE"])
        if step == {STEP} and self.world.rank == {RANK} and not done.exists():
            done.touch()
            batch.micro_batches[0][0].view(-1)[:1].view(torch.int32).bitwise_xor_(1)
"""


@pytest.mark.campaign
def test_a_run_repeats_the_step_of_a_wrong_image_and_ends_with_the_right_bits(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks would have had the same wrong weights; comparing these is off here."""
    monkeypatch.setattr(flipped_bits, "PATCHED_LINE", LINE)
    monkeypatch.setattr(flipped_bits, "PATCH", PATCH)
    monkeypatch.setenv("FAULT_FILE", str(tmp_path / "done"))
    cfg = save_each_step(short_config(betons))
    cfg = replace(cfg, checks=ChecksConfig(checksum_every_steps=0, recompute_every_steps=STEP + 1))
    run, expected = tmp_path / "run", new_run_folder(tmp_path / "expected")
    done = supervise_with_faults(faulty_source(tmp_path / "source"), run, cfg, 4)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()
    events = RunFolder(run).events()
    (found,) = [event for event in events if event["event"] == EVENT]
    assert found["what"] == f"augmented images of micro-batch {RANK}"
    assert [suspect["rank"] for suspect in found["suspects"]] == [RANK] and found["settled"]
    (restart,) = [event for event in events if event["event"] == "restarting in place"]
    assert (restart["kind"], restart["step"]) == ("unhealthy", STEP + 1)
    assert f"rank {RANK} on {found['suspects'][0]['node']} computed wrong values" in done.stdout
    first, second = [event for event in events if event["event"] == "started"]
    assert first["step"] == 0 and second["step"] <= STEP
    assert run_ranks(4, run_attempt, replace(cfg, checks=ChecksConfig()), expected) == [Outcome.FINISHED] * 4
    assert_same_run(run, expected)
