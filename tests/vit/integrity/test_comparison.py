"""One flipped bit of one rank is found, named, and never gets into a checkpoint."""

import socket
from pathlib import Path

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
from vit.history.wrong_arithmetic import EVENT
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
