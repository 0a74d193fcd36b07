"""Evaluation: the exact figures of the whole set, on any number of ranks."""

import functools
import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.data_sets import VAL, small_config
from tests.helpers.finished_runs import finished
from tests.helpers.ranks import run_ranks
from vit.augment.pipeline import normalize
from vit.config.schema import Config
from vit.data.loader import ValData
from vit.distributed.agreement import Agreement
from vit.distributed.world import World, join
from vit.evaluate import main
from vit.model.vision_transformer import VisionTransformer
from vit.training.scoring import Score, autocast, evaluate


def config(betons: Path) -> Config:
    """Twelve micro-batches, so that 1, 2, 3 and 4 ranks divide them; 100 images in 13 batches of 8."""
    return replace(small_config(betons), global_batch=96)


def model_of(cfg: Config) -> nn.Module:
    """Random weights, large enough that no two logits are alike, and dropout, which evaluation must turn off."""
    torch.manual_seed(4)
    model = VisionTransformer(replace(cfg.model, dropout=0.5, drop_path=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def score(cfg: Config) -> Score | None:
    """What one rank finds."""
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    with join(cfg) as world:
        return evaluate(model_of(cfg), ValData(cfg, world), cfg, world, autocast, stop=lambda: False)


@pytest.fixture(scope="module")
def alone(betons: Path) -> Score:
    """The score on one rank."""
    (found,) = run_ranks(1, score, config(betons))
    return found


def test_the_score_is_that_of_the_whole_set_at_once(alone: Score, betons: Path) -> None:
    """Counted by hand: one batch of all images, a rank among the sorted logits, a mean of all losses."""
    cfg = replace(config(betons), micro_batch=VAL, global_batch=VAL)
    data = ValData(cfg, World(rank=0, size=1, local_size=1, device=torch.device("cpu")))
    (batch,) = data.batches()
    assert np.array_equal(batch.samples, np.arange(VAL))
    with torch.inference_mode():
        logits = model_of(cfg).eval()(normalize(batch.images, cfg.augment))
    own = logits.gather(1, batch.labels[:, None])
    place = (logits > own).sum(dim=1)  # (VAL,), 0: the highest
    assert ((logits == own).sum(dim=1) == 1).all()  # no ties, so that there is one true answer
    assert alone.top1 == (place < 1).sum().item() / VAL
    assert alone.top5 == (place < 5).sum().item() / VAL
    assert alone.loss == pytest.approx(F.cross_entropy(logits.double(), batch.labels).item(), rel=1e-6)
    places = place.bincount(minlength=10).tolist()
    assert 0 < places[0] != places[1] and places[4] > 0 and places[5] > 0  # a wrong figure would show


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_score_does_not_depend_on_the_number_of_ranks(ranks: int, alone: Score, betons: Path) -> None:
    """To the last bit, the loss too, and every rank knows it."""
    assert run_ranks(ranks, score, config(betons)) == [alone] * ranks


def stopped_score(cfg: Config) -> tuple[Score | None, int]:
    """Rank 1 gets a real SIGTERM in its second round: the score, and the rounds that this rank began."""
    rounds = 0
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    with join(cfg) as world:
        agreement = Agreement(world)
        agreement.install()

        def stop() -> bool:
            nonlocal rounds
            rounds += 1
            if rounds == 2 and world.rank == 1 % world.size:
                os.kill(os.getpid(), signal.SIGTERM)
            return agreement.look()[0]

        found = evaluate(model_of(cfg), ValData(cfg, world), cfg, world, autocast, stop)
        agreement.close()
    return found, rounds


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_signal_to_one_rank_stops_the_evaluation_on_all(ranks: int, betons: Path) -> None:
    """In the middle, in the same round, and with no score: half of one would be taken for the whole."""
    results = run_ranks(ranks, stopped_score, config(betons))
    assert results == [(None, 2 if ranks == 1 else 3)] * ranks  # an agreement takes effect one round later


def test_the_command_gives_the_scores_of_the_weights_and_of_their_average(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that evaluation in training computes, exactly; a table for people, JSON for programs."""
    cfg = replace(small_config(betons), data=replace(small_config(betons).data, val=betons / "nowhere.beton"))
    state = finished(tmp_path / "run", cfg)
    data = ValData(small_config(betons), World(rank=0, size=1, local_size=1, device=torch.device("cpu")))
    command = [str(tmp_path / "run"), "--data", str(betons / "val.beton"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 12
    for name, model in (("last", state.model), ("ema", state.ema)):
        assert model is not None
        (expected,) = run_ranks(1, score_of, small_config(betons), model)
        assert found[name] == asdict(expected)
    assert found["last"] != found["ema"] and len(data.beton) == VAL
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["weights", "top-1", "top-5", "loss"]
    assert lines[2].split()[:2] == ["last", f"{found['last']['top1']:.3%}"]
    assert lines[3].split()[2] == f"{found['ema']['top5']:.3%}"

    for args, words in (
        ([str(tmp_path / "run")], "nowhere.beton does not exist"),
        ([str(tmp_path / "none")], "none is no run folder: it does not exist"),
        ([*command[:2], str(tmp_path / "val.beton")], "val.beton does not exist"),
    ):
        assert main([*args, "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert words in err and err.startswith("vit.evaluate: ") and err.count("\n") == 1


def score_of(cfg: Config, model: nn.Module) -> Score | None:
    with join(cfg) as world:
        return evaluate(model, ValData(cfg, world), cfg, world, autocast(cfg, world.device), stop=lambda: False)
