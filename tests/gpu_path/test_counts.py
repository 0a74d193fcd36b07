"""Launches and memory of a step are those of benchmarks/results/gpu_counts.json."""

import json

import pytest

from tests.helpers.gpu_runs import RECIPES
from tests.helpers.gpu_steps import CARDS, count
from tests.helpers.null_gpu import Card
from tests.helpers.null_gpu_ranks import NullGpu
from tests.helpers.paths import ROOT

SLACK = 0.05  # versions of torch differ a little
RESULTS = ROOT / "benchmarks" / "results" / "gpu_counts.json"
QUICK: list[tuple[str, Card]] = [("vit_ti16_deit", "a100")]
ALL = [(recipe, card) for recipe in RECIPES for card in CARDS]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.campaign) for case in ALL if case not in QUICK)]


@pytest.mark.parametrize(("recipe", "card"), CASES)
def test_a_step_has_the_launches_and_the_memory_of_the_results(recipe: str, card: Card, null_gpu: NullGpu) -> None:
    """Each recipe at its own batch size.  After an intended change: benchmarks/gpu_counts.py --out RESULTS."""
    results = json.loads(RESULTS.read_text())["recipes"]
    assert count(null_gpu, recipe, card) == pytest.approx(results[recipe][card], rel=SLACK, abs=0.01)
