"""A step that was not finite can be replayed: its checkpoint is kept, and the run prints the command."""

import json
import os
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.interrupted_runs import checkpoints, new_run_folder, run_attempt, save_each_step, short_config
from tests.helpers.ranks import run_ranks
from tests.helpers.replayed_runs import replay, replayed
from vit.checkpoint.format import step_of
from vit.checkpoint.skipped_steps import REPLAYABLE, states_before
from vit.train import Outcome


@pytest.fixture(scope="module")
def failed(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 11 steps with few checkpoints, whose pixels were NaN in steps 3 and 5, although its data set is intact.

    Its config.yaml is that of a job.
    """
    run = new_run_folder(tmp_path_factory.mktemp("failed") / "run")
    cfg = save_each_step(replace(short_config(betons), epochs=2))
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, keep=1))
    assert run_ranks(4, run_attempt, cfg, run, None, (), (2, 4)) == [Outcome.FINISHED] * 4
    return run


def test_the_checkpoints_before_failed_steps_are_kept(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So that their replay begins there, long after other checkpoints of that time were removed."""
    assert {2, 4} <= {step_of(path) for path in checkpoints(failed)}
    assert replay(failed, "--step", "5") == 0
    out = capsys.readouterr().out
    assert out.startswith("from the checkpoint of step 4\n")
    assert "the run skipped this step: the loss of step 5 is not finite; here it is executed" in out
    assert "the step is finite here: another device or version, or hardware that computed wrong values there" in out


def test_steps_after_a_skipped_one_have_the_bits_of_the_run(failed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The skipped steps before them stay skipped."""
    for step in (4, 6, 7):
        found = replayed(capsys, failed, step)
        assert found["recorded"] and found["same"] and not found["skipped"], step
    assert replayed(capsys, failed, 3)["skipped"]


def test_only_the_last_failed_steps_keep_their_checkpoints() -> None:
    """They would fill the disk."""
    assert REPLAYABLE == 3
    assert states_before({30, 10, 40, 20}) == {19, 29, 39}
    assert states_before(set()) == set()


def printed_attempt(out: Path, *args: Any) -> None:
    """An attempt whose ranks print into a folder: a server that forks them may have another standard output."""
    with (out / f"rank-{os.environ['RANK']}").open("w") as file, redirect_stdout(file):
        run_attempt(*args)


def test_a_rollback_prints_the_command_that_finds_out_why(betons: Path, tmp_path: Path) -> None:
    """With the run and the step; it works when pasted."""
    run = new_run_folder(tmp_path / "run")
    run_ranks(2, printed_attempt, tmp_path, save_each_step(short_config(betons)), run, None, (), (3,))
    out = (tmp_path / "rank-0").read_text()
    found = re.search(r"find out why: (.*-m vit\.replay \S+ --step 4 --anomaly)", out)
    assert found, out
    assert str(run) in found[1]


def test_the_steps_around_skipped_ones_have_the_bits_of_the_run(
    failed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The skipped steps are drawn, but not updated; they count as spikes of the whole run."""
    assert replay(failed, "--around", "4", "--steps", "3", "--json", "--out", str(tmp_path / "a.png")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["step"] for each in found["steps"] if each["skipped"]] == [3, 5]
    assert all(each["loss"] == each["recorded"] for each in found["steps"] if not each["skipped"])
    assert {3, 5} <= set(found["run"]["spikes"])
