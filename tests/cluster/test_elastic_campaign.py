"""Faults while a run has several sizes: it has one owner at a time, and ends with the bits of a run of a fixed size."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cluster_case import Case
from tests.helpers.elastic_case import ElasticCase, Observer
from tests.helpers.slow_checkout import slow_checkout

RANK_SECONDS = 2.0  # a step takes this long on one rank, and a quarter of it on four
SIZES = ("--gpus", "1-4", "--min-gain", "0.05")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with slow steps."""
    return slow_checkout(tmp_path_factory.mktemp("slow"), RANK_SECONDS)


@pytest.fixture
def elastic(case: Case, checkout: Path) -> Iterator[ElasticCase]:
    """A run with steps that are slow on few ranks; at the end, it never had two owners at a time."""
    elastic = ElasticCase(case.slurm, case.run, case.options).with_source(checkout)
    with Observer(elastic).watching() as observer:
        yield elastic
    assert not observer.found


def test_fixed(elastic: ElasticCase, reference_weights: bytes) -> None:
    elastic.start("--gpus", "4")
    elastic.finish()
    assert elastic.weights() == reference_weights
