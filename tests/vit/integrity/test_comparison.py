"""One flipped bit of one rank is found, named, and never gets into a checkpoint."""

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.flipped_bits import Flip, compare_every, run_flipped
from tests.helpers.interrupted_runs import (
    assert_same_run,
    checkpoints,
    new_run_folder,
    run_attempt,
    save_each_step,
    short_config,
)
from tests.helpers.ranks import run_ranks
from vit.config.schema import Config
from vit.distributed.world import join_process_group
from vit.history.wrong_arithmetic import EVENT, SETTLED_EVENT
from vit.integrity import device_kind
from vit.integrity.comparison import RankComparison
from vit.run.folder import Event, RunFolder

NODE = socket.gethostname()
WEIGHT, MOMENT = "blocks.0.attention.qkv.weight", "optimizer.blocks.1.mlp.fc1.weight.exp_avg"


@pytest.fixture(scope="module")
def cfg(betons: Path) -> Config:
    return compare_every(short_config(betons), 1)


@pytest.fixture(scope="module")
def undisturbed(cfg: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = new_run_folder(tmp_path_factory.mktemp("runs") / "undisturbed")
    assert run_ranks(4, run_attempt, cfg, run) == ["finished"] * 4
    assert not events(run, EVENT)
    return run


def events(run: Path, name: str) -> list[Event]:
    return [event for event in RunFolder(run).events() if event["event"] == name]


def attempt(run: Path, cfg: Config, *flips: Flip, ranks: int = 4) -> str:
    """Runs one attempt; all ranks must end it at the same step and in the same way."""
    first, *others = run_ranks(ranks, run_flipped, cfg, new_run_folder(run), *flips)
    assert [first] * len(others) == others
    return str(first[0])


@pytest.mark.parametrize(
    ("tensor", "what", "tensors"),
    [
        (f"model.{WEIGHT}", "weights and EMA of the weights", [f"model.{WEIGHT}", f"average.{WEIGHT}"]),
        (
            f"optimizer.{WEIGHT}.exp_avg",
            "weights and optimizer state and EMA of the weights",
            [f"model.{WEIGHT}", f"average.{WEIGHT}", f"optimizer.{WEIGHT}.exp_avg"],
        ),
        (f"average.{WEIGHT}", "EMA of the weights", [f"average.{WEIGHT}"]),
    ],
    ids=["weights", "optimizer", "ema"],
)
def test_a_flipped_bit_is_found_and_the_run_goes_on_with_the_same_bits(
    tensor: str, what: str, tensors: list[str], cfg: Config, undisturbed: Path, tmp_path: Path
) -> None:
    """At the next comparison.  The state is in no checkpoint, and the next attempt begins before the flip."""
    flip = Flip(step=4, rank=2, tensor=tensor)
    message = attempt(tmp_path / "run", cfg, flip)
    wrong = f"rank 2 on {NODE} computed wrong values"
    assert message == f"ranks differ in the {what} of step 5 ({', '.join(tensors)}): {wrong}"
    (event,) = events(tmp_path / "run", EVENT)
    assert (event["step"], event["what"], event["tensors"], event["settled"]) == (5, what, tensors, True)
    assert [(each["rank"], each["node"]) for each in event["suspects"]] == [(2, NODE)]
    assert checkpoints(tmp_path / "run")[0].name == "step-00000003"  # saved for the evaluation before step 4
    assert attempt(tmp_path / "run", cfg) == "finished"
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_state_with_a_flipped_bit_is_never_saved(cfg: Config, tmp_path: Path) -> None:
    """Each state is compared before it is saved, whatever the interval of comparisons and log lines."""
    seldom = save_each_step(compare_every(cfg, 1000), log_every_steps=1000)
    message = attempt(tmp_path / "run", seldom, Flip(step=2, rank=0, tensor=f"model.{WEIGHT}"))
    assert f": rank 0 on {NODE} computed" in message
    (event,) = events(tmp_path / "run", EVENT)
    saved = [event["step"] for event in events(tmp_path / "run", "checkpoint")]
    assert max(saved) < 2 <= event["step"] <= 3  # the flip came after step 2, and was found at the next save


def test_a_flipped_bit_is_found_at_the_next_log_step(cfg: Config, undisturbed: Path, tmp_path: Path) -> None:
    """Comparisons wait for nothing; several are looked at together, and the first difference counts."""
    together = compare_every(cfg, 2, log_every_steps=1000)  # only the evaluation after step 3 looks at them
    message = attempt(tmp_path / "run", together, Flip(step=1, rank=3, tensor=f"model.{WEIGHT}"))
    assert message.startswith("ranks differ in the weights and EMA of the weights of step 2 (")
    assert attempt(tmp_path / "run", cfg) == "finished"


def test_two_ranks_that_differ_are_settled_by_a_third_on_any_number_of_ranks(
    cfg: Config, undisturbed: Path, tmp_path: Path
) -> None:
    """Here a single one, which would compare nothing otherwise.  It computes the checksums of that step only.

    The wrong weight has led to a wrong sum of gradients: none of the two states was right, but one rank's losses were.
    """
    message = attempt(tmp_path / "run", cfg, Flip(step=4, rank=0, tensor="model.head.weight", bit=26), ranks=2)
    assert message.endswith(f"rank 0 on {NODE} or rank 1 on {NODE} computed wrong values")
    (found,) = events(tmp_path / "run", EVENT)
    assert not found["settled"]
    assert attempt(tmp_path / "run", cfg, ranks=1) == "finished"
    (settled,) = events(tmp_path / "run", SETTLED_EVENT)
    assert (settled["step"], [suspect["rank"] for suspect in settled["suspects"]]) == (5, [0])
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_rank_that_is_wrong_again_is_outvoted_by_the_earlier_attempt(cfg: Config, tmp_path: Path) -> None:
    """Its own values are others each time; the other rank had the same ones before."""
    for bit in (12, 13):
        message = attempt(tmp_path / "run", cfg, Flip(step=4, rank=1, tensor=f"average.{WEIGHT}", bit=bit), ranks=2)
    assert message.endswith(f": rank 1 on {NODE} computed wrong values")
    assert [event["settled"] for event in events(tmp_path / "run", EVENT)] == [False, True]


def test_who_was_wrong_remains_open_if_both_ranks_went_on_with_the_wrong_sum(cfg: Config, tmp_path: Path) -> None:
    """A small error in a weight changes the sum of the gradients, but no loss by more than rounding."""
    flip = Flip(step=4, rank=0, tensor=f"model.{WEIGHT}")
    assert " or " in attempt(tmp_path / "run", cfg, flip, ranks=2)
    assert attempt(tmp_path / "run", cfg, ranks=2) == "finished"
    assert [event["suspects"] for event in events(tmp_path / "run", SETTLED_EVENT)] == [[]]


def test_values_that_no_suspect_had_blame_nobody(cfg: Config, tmp_path: Path) -> None:
    """Another version of a library may round differently: then it remains open who was wrong."""
    run = tmp_path / "run"
    attempt(run, cfg, Flip(step=4, rank=0, tensor=f"model.{WEIGHT}"), ranks=2)
    ledger = RunFolder(run).ledger
    changed = ledger.read_text().replace('"value": "', '"value": "f')
    ledger.write_text(re.sub(r'"losses": \[\[', '"losses": [[1', changed))
    assert attempt(run, cfg, ranks=2) == "finished"
    assert [event["suspects"] for event in events(run, SETTLED_EVENT)] == [[]]


def test_a_step_that_is_not_finite_is_no_wrong_arithmetic(cfg: Config, tmp_path: Path) -> None:
    """It is rolled back and skipped as ever; what was compared before is compared again."""
    run = new_run_folder(tmp_path / "run")
    assert run_ranks(4, run_attempt, cfg, run, None, (), (2, 4)) == ["finished"] * 4
    assert [event["step"] for event in events(run, "skipped")] == [3, 5]
    assert not events(run, EVENT)


@pytest.mark.parametrize("changes", [{"exact": "samples"}, {"activation_checkpointing": True}], ids=str)
def test_ranks_agree_with_other_settings(changes: dict[str, Any], cfg: Config, tmp_path: Path) -> None:
    """Weights are the same on all ranks even where their bits depend on the order of a sum; and faults are found."""
    other = replace(cfg, **changes)
    assert attempt(tmp_path / "run", other) == "finished"
    assert "rank 3" in attempt(tmp_path / "faulty", other, Flip(step=2, rank=3, tensor=f"model.{WEIGHT}"))


def test_it_can_be_switched_off(cfg: Config, tmp_path: Path) -> None:
    """Then nothing is compared before a save either."""
    off = compare_every(cfg, 0)
    assert attempt(tmp_path / "run", off, Flip(step=2, rank=3, tensor=f"model.{WEIGHT}")) == "finished"


def start_on_unreadable_ledger(cfg: Config, run: RunFolder) -> str:
    with join_process_group(cfg) as world:
        try:
            RankComparison(run, world, cfg, dict)
        except OSError as error:
            return str(error)
    return "no error"


def test_a_ledger_that_cannot_be_read_ends_all_ranks_with_the_same_error(cfg: Config, tmp_path: Path) -> None:
    """The attempt is tried again: an earlier finding must not be forgotten."""
    run = RunFolder(tmp_path)
    run.ledger.symlink_to(run.ledger.name)  # a link to itself
    errors = run_ranks(2, start_on_unreadable_ledger, cfg, run)
    assert errors[0] == errors[1] and "ledger.jsonl" in errors[0]


def start_on_different_devices(cfg: Config, run: RunFolder) -> int:
    with join_process_group(cfg) as world:
        device_kind.device_kind = lambda _: f"GPU model {world.rank % 2}"
        return RankComparison(run, world, cfg, dict).every_steps


def test_ranks_on_devices_that_round_differently_are_not_compared(cfg: Config, tmp_path: Path) -> None:
    """They drift apart without any fault."""
    assert run_ranks(4, start_on_different_devices, cfg, RunFolder(tmp_path)) == [0] * 4
