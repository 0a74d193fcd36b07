"""A wrong gradient or a damaged batch of one rank is found, although all ranks would have the same wrong weights."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.flipped_batches import PARAMETER, Flip, run_flipped
from tests.helpers.interrupted_runs import (
    assert_same_tensors,
    checkpoints,
    new_run_folder,
    run_attempt,
    save_each_step,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.config.sections import ChecksConfig
from vit.distributed.world import join_process_group
from vit.history.wrong_arithmetic import SETTLED_EVENT
from vit.integrity.open_disputes import OpenDisputes
from vit.integrity.recompute_plan import recompute_plan
from vit.run.folder import RunFolder
from vit.train import Outcome

EVERY = 2
STEP = 3  # the second one in which a micro-batch of each rank is recomputed


def checked(cfg: Config, every: int = EVERY) -> Config:
    """Recomputes every two steps, and compares no weights."""
    return replace(cfg, checks=ChecksConfig(checksum_every_steps=0, recompute_every_steps=every))


def checked_config(betons: Path, micro_batch: int = 12) -> Config:
    """Eight micro-batches of 12 images a step: two for each of four ranks."""
    return checked(replace(short_config(betons), micro_batch=micro_batch))


def findings(ranks: int, cfg: Config, run: Path, flip: Flip) -> dict[str, Any]:
    """What all ranks found."""
    found = run_ranks(ranks, run_flipped, cfg, new_run_folder(run), flip)
    assert all(each == found[0] for each in found)
    assert found[0] is not None, "no rank found anything"
    return dict(found[0])


@pytest.mark.parametrize(
    ("where", "what", "named"),
    [
        ("gradient", "gradient", PARAMETER),
        ("pixels", "decoded pixels", "sample"),
        ("images", "augmented images", "sample"),
        ("targets", "targets", "sample"),
    ],
)
def test_a_flipped_bit_of_one_rank_is_found_and_named(
    where: Any, what: str, named: str, betons: Path, tmp_path: Path
) -> None:
    """With the rank, settled by the two ranks that have nothing to do with it, and before the step is saved."""
    cfg, run = save_each_step(checked_config(betons)), tmp_path / "run"
    plan = recompute_plan(cfg, [""] * 4, STEP)
    found = findings(4, cfg, run, Flip(where, 2, STEP, plan.j))
    assert found["what"].startswith(f"{what} of micro-batch {plan.index(2)}")
    assert found["tensors"][0].startswith(named)
    assert [each["rank"] for each in found["suspects"]] == [2]
    assert found["settled"]
    assert found["step"] == STEP + 1
    events = [event for event in RunFolder(run).events() if event["event"] == "wrong arithmetic"]
    assert len(events) == 1
    assert checkpoints(run)[0].name <= f"step-{STEP:08d}"
    assert run_ranks(2, run_flipped, cfg, run, None) == [None] * 2  # and the run goes on from there


@pytest.mark.parametrize("where", ["recomputed", "recomputed once"])
def test_a_rank_that_recomputes_wrong_values_is_named_itself(where: Any, betons: Path, tmp_path: Path) -> None:
    """Not the rank whose right gradient it does not confirm."""
    found = findings(4, checked_config(betons), tmp_path / "run", Flip(where, 1, STEP))
    assert [each["rank"] for each in found["suspects"]] == [1]
    assert found["settled"]


@pytest.mark.parametrize(
    ("where", "suspects", "settled"),
    [("gradient", [1], True), ("recomputed once", [1], True), ("recomputed", [0, 1], False)],
)
def test_of_two_ranks_the_one_that_does_not_get_its_own_result_again_is_wrong(
    where: Any, suspects: list[int], settled: bool, betons: Path, tmp_path: Path
) -> None:
    """If a rank gets the same wrong result again, both are suspects."""
    cfg = checked_config(betons)
    plan = recompute_plan(cfg, [""] * 2, STEP)
    found = findings(2, cfg, tmp_path / "run", Flip(where, 1, STEP, plan.j))
    assert ([each["rank"] for each in found["suspects"]], found["settled"]) == (suspects, settled)


@pytest.mark.parametrize(
    ("wrong", "new_partner", "suspects"),
    [
        (0, "c", ["a"]),  # the one that stayed is wrong again, with a new partner
        (None, "c", None),  # the one that has gone was wrong
        (0, "b", ["a", "b"]),  # it is still open with the same partner
    ],
)
def test_a_dispute_of_two_ranks_is_settled_by_a_new_partner(
    wrong: int | None, new_partner: str, suspects: list[str] | None, betons: Path, tmp_path: Path
) -> None:
    """The supervisor leaves one of both nodes, and the run computes the same step again."""
    cfg, run = save_each_step(checked_config(betons)), new_run_folder(tmp_path / "run")
    first = run_ranks(2, run_flipped, cfg, run, Flip("recomputed", 0 if wrong == 0 else 1, STEP), ["a", "b"])
    assert not first[0]["settled"]
    flip = Flip("recomputed", 0, STEP) if wrong == 0 else None
    found = run_ranks(2, run_flipped, cfg, run, flip, ["a", new_partner])[0]
    assert (found and [each["node"] for each in found["suspects"]]) == suspects
    assert found is None or found["settled"] == (len(found["suspects"]) == 1)
    later = [event["suspects"] for event in RunFolder(run).events() if event["event"] == SETTLED_EVENT]
    assert [[suspect["node"] for suspect in each] for each in later] == ([] if found else [["b"]])


def open_disputes(run: Path) -> str:
    """What reading the earlier disputes raises on this rank."""
    with join_process_group(Config(device="cpu", global_batch=4, micro_batch=1)) as world:
        try:
            OpenDisputes(RunFolder(run), world, [])
        except OSError as error:
            return str(error)
    return ""


def test_a_ledger_that_cannot_be_read_ends_the_attempt_on_all_ranks(tmp_path: Path) -> None:
    """None of them is left in a collective operation, and the attempt is made again."""
    RunFolder(tmp_path).ledger.mkdir()
    errors = run_ranks(2, open_disputes, tmp_path)
    assert errors[0] == errors[1] and str(RunFolder(tmp_path).ledger) in errors[0]


def test_a_single_rank_finds_what_it_does_not_get_again(betons: Path, tmp_path: Path) -> None:
    """A fault that is always the same is not found by one rank."""
    cfg = checked_config(betons)
    flip = Flip("gradient", 0, STEP, recompute_plan(cfg, [""], STEP).j)
    assert findings(1, cfg, tmp_path / "run", flip)["tensors"] == (PARAMETER,)


def test_a_run_whose_rank_dies_while_it_recomputes_ends_with_the_same_bits(betons: Path, tmp_path: Path) -> None:
    """Before the step's own passes; the others fail, and all of them start again."""
    cfg, run, expected = checked_config(betons), new_run_folder(tmp_path / "run"), new_run_folder(tmp_path / "expected")
    died = run_ranks(4, run_flipped_or_fail, save_each_step(cfg), run, Flip("killed", 2, STEP))
    assert died == ["failed", "failed", -signal.SIGKILL, "failed"]
    assert not [event for event in RunFolder(run).events() if event["event"] == "wrong arithmetic"]
    assert run_ranks(4, run_attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert run_ranks(4, run_attempt, checked(cfg, 0), expected) == [Outcome.FINISHED] * 4
    assert_same_tensors(run, expected)


def run_flipped_or_fail(cfg: Config, run: Path, flip: Flip) -> str:
    """Runs an attempt in which another rank dies."""
    try:
        run_flipped(cfg, run, flip)
    except RuntimeError:  # of gloo
        return "failed"
    return "finished"


def test_a_rank_without_memory_for_another_micro_batch_trains_on(betons: Path, tmp_path: Path) -> None:
    """It says so, and is not compared in that step."""
    cfg, run = checked_config(betons), new_run_folder(tmp_path / "run")
    assert run_ranks(4, run_flipped, cfg, run, Flip("no memory", 1, STEP)) == [None] * 4
    events = RunFolder(run).events()
    assert [event["step"] for event in events if event["event"] == "recomputed"] == [2, 4, 6]
    (skipped,) = [event for event in events if event["event"] == "not recomputed"]
    assert (skipped["step"], skipped["rank"], skipped["error"]) == (STEP + 1, 1, "CUDA out of memory.")


def test_weights_that_are_not_finite_are_no_finding(betons: Path, tmp_path: Path) -> None:
    """A gradient of NaN may have other bits each time; it ends the run, or is rolled back, as without this check."""
    cfg = checked_config(betons)
    cfg = replace(
        cfg,
        checks=ChecksConfig(checksum_every_steps=0, recompute_every_steps=1),
        optim=replace(cfg.optim, lr=1e30, max_skipped=0, clip_norm=0),
    )
    with pytest.raises(FloatingPointError):
        run_ranks(
            4, run_flipped, replace(cfg, log=replace(cfg.log, every_steps=5)), new_run_folder(tmp_path / "run"), None
        )
    events = RunFolder(tmp_path / "run").events()
    assert [event["step"] for event in events if event["event"] == "recomputed"] == [1, 2, 3]
