"""A supervised run in which a rank computes wrong values goes on by itself, and ends with the right bits."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.flipped_bits import compare_every, faulty_source, supervise_with_faults
from tests.helpers.interrupted_runs import assert_same_run, save_each_step, short_config
from vit.config.schema import Config
from vit.history.wrong_arithmetic import EVENT, SETTLED_EVENT
from vit.run.folder import Event, RunFolder

WEIGHT = "model.blocks.0.attention.qkv.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def cfg(betons: Path) -> Config:
    return save_each_step(compare_every(short_config(betons), 1))


@pytest.fixture(scope="module")
def undisturbed(source: Path, cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = supervise_with_faults(source, run, cfg, 4)
    assert done.returncode == 0, done.stderr
    return run


def events(run: Path, *names: str) -> list[Event]:
    return [event for event in RunFolder(run).events() if event["event"] in names]


def test_a_run_leaves_the_wrong_state_and_ends_with_the_right_bits(
    source: Path, cfg: Config, undisturbed: Path, tmp_path: Path
) -> None:
    """The supervisor names the rank and restarts all; the wrong state was not saved."""
    run = tmp_path / "run"
    done = supervise_with_faults(source, run, cfg, 4, f"5 2 {WEIGHT}")
    assert done.returncode == 0, done.stderr
    (found,) = events(run, EVENT)
    assert found["step"] == 5 and [suspect["rank"] for suspect in found["suspects"]] == [2]
    (restart,) = events(run, "restarting in place")
    node = found["suspects"][0]["node"]
    assert (restart["kind"], restart["node"], restart["suspects"], restart["step"]) == ("unhealthy", node, [node], 5)
    assert f"rank 2 on {node} computed wrong values\nrestarting in place: no other node can be used" in done.stdout
    first, second = events(run, "started")
    assert first["step"] == 0 and second["step"] < 5
    assert_same_run(run, undisturbed)


def test_two_ranks_that_differ_are_settled_when_the_step_is_computed_again(
    source: Path, cfg: Config, undisturbed: Path, tmp_path: Path
) -> None:
    """Also if the second attempt is killed before it reaches that step."""
    run = tmp_path / "run"
    done = supervise_with_faults(source, run, cfg, 2, f"5 1 {WEIGHT}", "5 0 SIGKILL")
    assert done.returncode == 0, done.stderr
    (found,) = events(run, EVENT)
    assert not found["settled"] and [suspect["rank"] for suspect in found["suspects"]] == [0, 1]
    assert [event["kind"] for event in events(run, "restarting in place")] == ["unhealthy", "signal"]
    (settled,) = events(run, SETTLED_EVENT)
    assert settled["step"] == 5 and [suspect["rank"] for suspect in settled["suspects"]] == [1]
    assert "rank 1 on" in (run / "logs" / "rank-0.log").read_text().partition("step 5 was computed again: ")[2]
    assert_same_run(run, undisturbed)


def test_a_run_gives_up_on_a_machine_that_is_wrong_again_and_again(source: Path, cfg: Config, tmp_path: Path) -> None:
    """And says so; new checkpoints in between do not matter."""
    faults = [f"{step} 3 {WEIGHT}" for step in (2, 3, 4, 5)]
    done = supervise_with_faults(source, tmp_path / "run", replace(cfg, epochs=2), 4, *faults)
    assert done.returncode == 1
    assert len(events(tmp_path / "run", EVENT)) == 4
    (end,) = events(tmp_path / "run", "gave up")
    assert "wrong values were computed 4 times on " in end["why"]
