"""A comparison of ranks names those that computed wrong values, on all ranks and in the ledger."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks
from vit.distributed.world import World
from vit.history.wrong_arithmetic import EVENT
from vit.integrity.device_kind import device_kind
from vit.integrity.finding import WrongArithmeticError, outvoted, report
from vit.run.folder import NODE_VARIABLE, RunFolder


def test_ranks_that_differ_from_the_most_common_value_are_wrong() -> None:
    """Without such a value, any rank may be wrong."""
    assert outvoted([7, 7, 8, 7]) == ([2], True)
    assert outvoted(["a", "b", "c", "b"]) == ([0, 2], True)
    assert outvoted([7, 8]) == ([0, 1], False)
    assert outvoted([7, 7, 8, 8]) == ([0, 1, 2, 3], False)


def found_on_this_rank(run: Path, settled: bool) -> str:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    os.environ[NODE_VARIABLE] = f"n{rank + 1}"
    world = World(rank, dist.get_world_size(), 1, torch.device("cpu"))
    try:
        report(
            RunFolder(run), world, step=40, what="weights", suspects=[2] if settled else [0, 2], settled=settled,
            tensors=["a", "b", "c", "d"], values={0: "0a", 2: "0b"},
        )  # fmt: skip
    except WrongArithmeticError as error:
        return str(error)


@pytest.mark.parametrize("settled", [True, False])
def test_all_ranks_raise_the_same_finding_which_is_in_the_ledger(settled: bool, tmp_path: Path) -> None:
    """Once, with node and what each suspect computed."""
    who = "rank 2 on n3" if settled else "rank 0 on n1 or rank 2 on n3"
    message = f"ranks differ in the weights of step 40 (a, b, c, …): {who} computed wrong values"
    assert run_ranks(4, found_on_this_rank, tmp_path, settled) == [message] * 4
    (event,) = RunFolder(tmp_path).events()
    assert event["event"] == EVENT and event["settled"] is settled and event["tensors"] == ["a", "b", "c", "d"]
    assert event["suspects"][-1] == {"rank": 2, "node": "n3", "gpu": "", "value": "0b", "losses": []}
    assert (event["step"], event["what"], event["ranks"]) == (40, "weights", 4)
    assert event["device"] == device_kind(torch.device("cpu"))
